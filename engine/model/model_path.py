"""The file of a model that is named: itself, the one in a directory, or the bundled one."""

import os
from pathlib import Path

from hotcold.errors import FileError

BUNDLED_MODEL = "tiny-relu-llama"


def model_path(path: str | os.PathLike[str] | None) -> Path:
    """The model's file: `path`, the one .gguf in the directory `path`, or the bundled model for None.

    Raises:
        FileError: nothing there, or a directory with no .gguf or several.
    """
    if path is None:
        return _bundled_model()
    given = Path(path).expanduser()
    if not given.is_dir():
        return given
    try:
        found = sorted(entry for entry in given.iterdir() if entry.suffix == ".gguf" and entry.is_file())
    except OSError as error:
        raise FileError("model directory", given, error.strerror or "cannot be read") from error
    if len(found) != 1:
        names = f": {', '.join(entry.name for entry in found[:5])}" if found else ""
        more = ", …" if len(found) > 5 else ""
        bound = f"a directory needs exactly one .gguf file, this has {len(found)}{names}{more}"
        raise FileError("model directory", given, bound, "name the file itself")
    return found[0]


def _bundled_model() -> Path:
    from importlib import resources

    folder = Path(str(resources.files("hotcold"))) / "models" / BUNDLED_MODEL
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise FileError("bundled model", folder, "no .gguf file there", "name a model with -m")
    return found[0]
