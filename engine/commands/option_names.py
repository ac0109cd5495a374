"""What a command's options are called: the library's errors name its keywords, a user typed something else."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from typer.models import OptionInfo

from hotcold.errors import HotcoldError, SettingError

KEYWORD = re.compile(r"(?<![\w.])[a-z]+(?:_[a-z]+)+(?![\w.=])")  # in running text only what cannot be a word
CONTENTS = ("prompt", "system", "file", "path", "model")  # errors name these, wherever they come from


def option_names(command: type, typed: Sequence[str] = ()) -> dict[str, str]:
    """By field of a command, its option as it was typed, or else the first of its names.

    Args:
        typed: the words of the command line.
    """
    return {
        field: next((name for name in known if _is_typed(name, typed)), known[0])
        for field, known in _all_names(command).items()
    }


def _all_names(command: type) -> dict[str, list[str]]:
    """By field of a command, all names of its option."""
    names = {}
    for field, hint in get_type_hints(command, include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            if isinstance(option, OptionInfo):
                given = (option.default, *(option.param_decls or ()))  # the first name lies in `default`
                names[field] = [d.strip(" /") for d in given if isinstance(d, str) and "-" in d]
                names[field] = names[field] or [_default(field)]
    return names


def check_paths(command: object, typed: Sequence[str] | None = None) -> None:
    """Refuse a path that was typed as nothing, which would be the working folder.

    Args:
        typed: see `in_options`.

    Raises:
        SettingError: such a path.
    """
    words, names = sys.argv[1:] if typed is None else typed, _all_names(type(command))
    empty = [i for i, word in enumerate(words) if not word]
    for field, value in vars(command).items():
        paths = value if isinstance(value, list | tuple) else (value,)
        if Path() not in paths:
            continue
        if field in names:
            before = range(1, 1 + (len(paths) if isinstance(value, tuple) else 1))
            behind = {words[i - k] for i in empty for k in before if i >= k}
            behind |= {word[:-1] for word in words if word.endswith("=")}
            is_empty = bool(behind & {*names[field]})
        else:
            is_empty = any(not words[i - 1].startswith("-") for i in empty)
        if is_empty:
            thing = option_names(type(command), words).get(field, field.upper())
            raise SettingError(thing, '""', "no path", "name one")


def in_options(error: HotcoldError, command: type, typed: Sequence[str] | None = None) -> str:
    """An error's text with a command's options in place of keywords; `typed` is None for this process's words."""
    names = option_names(command, sys.argv[1:] if typed is None else typed)

    def renamed(text: str) -> str:
        return KEYWORD.sub(lambda found: names.get(found[0], found[0]), text)

    parts: tuple[Any, ...] = (error.thing, error.bound, error.next_step)
    thing, bound, next_step = map(renamed, parts)
    if error.thing not in CONTENTS:
        thing = names.get(error.thing, thing)
    if parts == (thing, bound, next_step):
        return str(error)
    return str(HotcoldError(thing, error.value, bound, next_step))


def _default(field: str) -> str:
    return "--" + field.replace("_", "-")


def _is_typed(name: str, typed: Sequence[str]) -> bool:
    """Whether an option was given by this name: alone, with =, or a letter with its value behind it."""
    is_letter = not name.startswith("--")
    return any(word == name or word.startswith(name if is_letter else f"{name}=") for word in typed)
