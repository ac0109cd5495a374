"""The file of a model that is named: itself, the one in a directory, or the bundled one."""

import os
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.split import gguf_in

BUNDLED_MODEL = "tiny-relu-llama"


def model_path(path: str | os.PathLike[str] | None) -> Path:
    """The model's file: `path`, the one model in the directory `path`, or the bundled model for None.

    Raises:
        FileError: nothing there, or a directory with no .gguf or several.
    """
    if path is None:
        return _bundled_model()
    given = Path(path).expanduser()
    if not given.is_dir():
        return given
    return gguf_in(given)


def _bundled_model() -> Path:
    from importlib import resources

    folder = Path(str(resources.files("hotcold"))) / "models" / BUNDLED_MODEL
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise FileError("bundled model", folder, "no .gguf file there", "name a model with -m")
    return found[0]
