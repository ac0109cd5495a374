"""The file of a model that is named: itself, the one in a directory, or a bundled one."""

import os
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.hub import PREFIX
from hotcold.gguf_io.split import gguf_in

BUNDLED = ("tiny-relu-llama", "tiny-moe-austen")  # the first is the model of who names none


def model_path(path: str | os.PathLike[str] | None) -> Path:
    """The file of a model that is named.

    Args:
        path: the file itself, a directory that holds one model, hf:USER/REPO:QUANT, which is fetched if it is not
            there, or the name of a bundled model where nothing else has it; None for the first of them.

    Raises:
        SettingError: a name after hf: that is none.
        FileError: nothing there, a directory with no .gguf or several, or a hub that does not give it.
    """
    name = bundled_name(path)
    if path is None or name:
        return _bundled_model(name)
    if os.fspath(path).startswith(PREFIX):
        return _of_a_hub(os.fspath(path))
    given = Path(path).expanduser()
    if not given.is_dir():
        return given
    return gguf_in(given)


def bundled_name(path: str | os.PathLike[str] | None) -> str:
    """Which of the package's own models is named, also by no word at all; "" where it is another."""
    if path is None:
        return BUNDLED[0]
    name = os.fspath(path)
    return name if name in BUNDLED and not Path(path).exists() else ""


def _of_a_hub(name: str) -> Path:
    from hotcold.gguf_io.hub.fetch import fetch
    from hotcold.gguf_io.hub.kept import find
    from hotcold.gguf_io.hub.names import parse_reference

    reference = parse_reference(name)
    kept = find(reference)
    return kept.paths[0] if kept is not None else fetch(reference)


def _bundled_model(name: str) -> Path:
    from importlib import resources

    folder = Path(str(resources.files("hotcold"))) / "models" / name
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise FileError("bundled model", folder, "no .gguf file there", "name a model with -m")
    return found[0]
