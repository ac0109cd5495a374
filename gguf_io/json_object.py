"""Reads the small JSON files that lie beside a model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotcold.errors import FileError

MAX_BYTES = 100_000_000


def read_json_object(path: Path, repeated: Callable[[int], None] | None = None) -> dict[str, Any]:
    """The JSON object in `path`.

    Args:
        repeated: hears how many names occur again in an object, of which the last counts; None: none may.

    Raises:
        FileError: no readable file, over 100 MB, no valid JSON, not an object, or a name that occurs twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileError(str(path), f"{path.stat().st_size} bytes", f"at most {MAX_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        raise FileError(str(path), error.strerror or "cannot be read", "", "check the path") from error
    return parse_json_object(content, str(path), repeated)


def parse_json_object(
    content: bytes, origin: str, repeated: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """The JSON object in `content`; `origin` names it in the error."""

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if repeated is not None:
            repeated(len(pairs) - len(names))
        elif len(names) != len(pairs):
            raise ValueError("a name occurs twice")
        return names

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=made)
    except (ValueError, RecursionError) as error:
        raise FileError(origin, f"{error}"[:200], "must be valid JSON", "fetch the file again") from error
    if not isinstance(value, dict):
        raise FileError(origin, type(value).__name__, "must be a JSON object", "fetch the file again")
    return value
