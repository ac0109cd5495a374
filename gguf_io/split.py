"""Models that are split into several files, as llama.cpp's llama-gguf-split makes them.

Part 1 of 3 of `model` is `model-00001-of-00003.gguf`. Each part is a GGUF file with tensors of its own;
`split.no` is its number from 0, `split.count` how many there are, `split.tensors.count` the tensors of all
of them together. Everything else that the metadata says is in the first.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.errors import MetadataError, NotGGUFError, TensorTableError
from hotcold.gguf_io.part import Part, open_part

NUMBER, COUNT, N_TENSORS = "split.no", "split.count", "split.tensors.count"
KEYS = (NUMBER, COUNT, N_TENSORS)
NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
MAX_PARTS = 99_999  # five digits

NAMING = "give the parts the names that they came with, such as model-00001-of-00002.gguf"
TOGETHER = "put all parts into one folder, with the names that they came with"
FOREIGN = "download all parts again, from one place"


def part_name(stem: str, number: int, count: int) -> str:
    """The name of one part; number counts from 1."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def open_others(part: Part) -> list[Part]:
    """All parts of the model that one of them belongs to, in order; itself alone if it is all of it.

    Raises:
        GGUFError: a part is missing, damaged, or of another model.
    """
    count = _number(part, COUNT, 0, MAX_PARTS)
    if count < 2:
        return [part]
    own = _number(part, NUMBER, 0, count - 1)
    named = NAME.fullmatch(part.path.name)
    if named is None or (int(named["number"]), int(named["count"])) != (own + 1, count):
        bound = f"it is part {own + 1} of {count}, and a part is known by its name"
        raise NotGGUFError("model file", part.path, bound, NAMING)
    before, behind = named.string[: named.start("number")], named.string[named.end("number") :]
    names = [f"{before}{i + 1:05}{behind}" for i in range(count)]  # in the letters of this one, -OF- too
    paths = [part.path.with_name(name) for name in names]
    if missing := [path.name for path in paths if not path.exists()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        bound = f"part {paths[0].with_name(missing[0]).name}{more} of {count} is missing"
        raise NotGGUFError("model file", part.path, bound, TOGETHER)
    parts = [part if i == own else open_part(path) for i, path in enumerate(paths)]
    _check_together(parts)
    return parts


def _check_together(parts: Sequence[Part]) -> None:
    """Refuse parts that are not of one model."""
    first, seen = parts[0], dict[str, Part]()
    for i, part in enumerate(parts):
        said = (_number(part, NUMBER, 0, MAX_PARTS), _number(part, COUNT, 0, MAX_PARTS))
        if said != (i, len(parts)):
            bound = f"part {said[0] + 1} of {said[1]} by what it says of itself: it is foreign to {first.path.name}"
            raise MetadataError("model part", part.path, bound, FOREIGN)
        if part.magic != first.magic or _all_tensors(part) != _all_tensors(first):
            raise MetadataError(
                "model part", part.path, f"is a part of another model than {first.path.name}", FOREIGN
            )
        for name in part.tensors:
            if name in seen:
                bound = f"also in {seen[name].path.name}: these are parts of different models"
                raise TensorTableError(f"{part.path.name}: tensor", name, bound, FOREIGN)
            seen[name] = part
    if _all_tensors(first) not in (None, len(seen)):
        bound = f"{N_TENSORS} is {_all_tensors(first)}: a part is of another model"
        raise MetadataError(f"{first.path.name} and its parts", f"{len(seen)} tensors", bound, FOREIGN)


def _all_tensors(part: Part) -> object:
    return part.metadata.get(N_TENSORS)


def _number(part: Part, key: str, low: int, high: int) -> int:
    """A whole number of a part's metadata."""
    value = part.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise MetadataError(f"{part.path.name}: {key}", value, "must be an integer", FOREIGN)
    if not low <= value <= high:
        raise MetadataError(f"{part.path.name}: {key}", value, f"{low} to {high}", FOREIGN)
    return value


def gguf_in(folder: Path) -> Path:
    """The one model in a folder: a .gguf file, or the first part of one that is split.

    Raises:
        FileError: the folder cannot be read, or holds no model or several.
    """
    try:
        found = ggufs_in(folder)
    except OSError as error:
        raise FileError("model directory", folder, error.strerror or "cannot be read") from error
    models: dict[object, Path] = {}
    for path in found:
        named = NAME.fullmatch(path.name)
        models.setdefault((named["stem"], named["count"]) if named else path.name, path)
    if len(models) == 1:
        return found[0]
    shown = list(models.values()) or ggufs_below(folder)
    names = f": {', '.join(str(path.relative_to(folder)) for path in shown[:5])}" if shown else ""
    more = ", …" if len(shown) > 5 else ""
    where = " of its own, but in folders" if shown and not models else ""
    bound = f"a directory needs exactly one .gguf file, this has {len(models)}{where}{names}{more}"
    raise FileError("model directory", folder, bound, "name the file itself")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds GGUF files, and no model as Hugging Face has it."""
    try:
        return bool(ggufs_in(folder)) and not (folder / "config.json").exists()
    except OSError:
        return False


def ggufs_in(folder: Path) -> list[Path]:
    """The GGUF files of a folder, however their ending is written.

    Raises:
        OSError: it cannot be listed.
    """
    return sorted(entry for entry in folder.iterdir() if entry.suffix.lower() == ".gguf" and entry.is_file())


def ggufs_below(folder: Path) -> list[Path]:
    """Those of its folders, as repositories have the parts of large models."""
    found = list[Path]()
    for each in sorted(folder.iterdir()):
        with suppress(OSError):
            found += ggufs_in(each) if each.is_dir() else []
    return found
