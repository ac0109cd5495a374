"""The page at `/`: one file, whose own style and script are all that a browser may run of it."""

import base64
import hashlib
import re
from importlib.resources import files

BLOCK = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers that it is sent with."""
    text = files(__package__).joinpath("page.html").read_text("utf-8")
    allowed = {kind: _hash(inside) for kind, inside in BLOCK.findall(text)}
    policy = {
        "default-src": "'none'",
        "connect-src": "'self'",
        "style-src": allowed["style"],
        "script-src": allowed["script"],
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return text.encode(), headers


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
