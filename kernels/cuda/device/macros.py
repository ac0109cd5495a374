"""Just enough of the C preprocessor to read the kernels that macros declare.

Macros with and without parameters, `##`, and continued lines; no conditionals. Where two definitions
of one name differ, the first counts.
"""

import re
from dataclasses import dataclass

DEFINE = re.compile(r"^#define (\w+)(?:\(([^)]*)\))?[ \t]+(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Macro:
    """`parameters` is None for a macro that takes no brackets."""

    parameters: tuple[str, ...] | None
    body: str


def without_comments(source: str) -> str:
    """The source with continued lines joined and `//` comments taken out."""
    return re.sub(r"[ \t]*//[^\n]*", "", source).replace("\\\n", " ")


def expand(source: str, keep: frozenset[str]) -> str:
    """The text after the preprocessor, without its directives.

    Args:
        source: as `without_comments` leaves it.
        keep: names that stay as they are, though a macro has them.
    """
    macros: dict[str, Macro] = {}
    for name, parameters, body in DEFINE.findall(source):
        if name not in keep:
            takes = re.search(rf"^#define {name}\(", source, re.MULTILINE)
            names = tuple(word.strip() for word in parameters.split(",")) if takes else None
            macros.setdefault(name, Macro(names, body))
    text = re.sub(r"^[ \t]*#[^\n]*", "", source, flags=re.MULTILINE)
    return _expanded(text, macros) if macros else text


def _expanded(text: str, macros: dict[str, Macro]) -> str:
    """Replace each call from left to right; what a call becomes is expanded in turn."""
    names = re.compile(rf"\b({'|'.join(map(re.escape, macros))})\b")
    done, at = [], 0
    while found := names.search(text, at):
        macro, end = macros[found[1]], found.end()
        arguments: list[str] = []
        if macro.parameters is not None:
            if text[end : end + 1] != "(":
                done.append(text[at:end])
                at = end
                continue
            arguments, end = _arguments(text, end + 1)
        done.append(text[at : found.start()])
        others = {name: other for name, other in macros.items() if name != found[1]}
        body = _filled(macro, arguments)
        done.append(_expanded(body, others) if others else body)
        at = end
    return "".join(done) + text[at:]


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """The arguments of a call whose bracket was opened before `start`, and where the call ends."""
    depth, arguments, first = 1, [], start
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0 or (depth == 1 and text[at] == ","):
            arguments.append(text[first:at].strip())
            first = at + 1
        if depth == 0:
            return arguments, at + 1
    return arguments, len(text)


def _filled(macro: Macro, arguments: list[str]) -> str:
    """A macro's body with its arguments in place, and `##` pasted."""
    body = macro.body
    values = dict(zip(macro.parameters or (), arguments, strict=False))
    if values:
        names = "|".join(map(re.escape, values))
        body = re.sub(rf"\b({names})\b", lambda found: values[found[1]], body)
    return re.sub(r"\s*##\s*", "", body)
