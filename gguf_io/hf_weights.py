"""The tensors of a Hugging Face directory: one safetensors file, or several with their index."""

from collections.abc import Mapping
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.safetensors_file import open_safetensors
from hotcold.gguf_io.source_tensor import SourceTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head."


def weight_files(model_dir: Path) -> tuple[Path, ...]:
    """The safetensors files of `model_dir`, present or not, in the order of their names.

    Raises:
        FileError: the index is damaged or names a file outside `model_dir`.
    """
    if not (model_dir / INDEX).exists():
        return (model_dir / SINGLE,)
    return tuple(model_dir / name for name in sorted(set(_weight_map(model_dir / INDEX).values())))


def open_weights(model_dir: Path, prefix: str) -> dict[str, SourceTensor]:
    """Every tensor of `model_dir` by name; headers are read and checked, numbers are not.

    `prefix` begins all names but the head's; a checkpoint of the model without its head leaves it out.

    Raises:
        FileError: a file is missing or damaged, a name occurs in two of them, or the index names a
            tensor that its file does not have.
    """
    found: dict[str, SourceTensor] = {}
    homes: dict[str, Path] = {}
    for path in weight_files(model_dir):
        for name, tensor in open_safetensors(path).items():
            if name in found:
                raise FileError(
                    f"tensor {name}", f"in {homes[name]} and {path}", "one file each", "fetch them again"
                )
            found[name], homes[name] = tensor, path
    if (model_dir / INDEX).exists():
        _check_index(model_dir / INDEX, homes)
    if not any(name.startswith(prefix) for name in found):
        return {name if name.startswith(HEAD) else prefix + name: found[name] for name in found}
    return found


def _weight_map(index: Path) -> dict[str, str]:
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise FileError(
            f"{index}: weight_map", "missing or empty", "one file name a tensor", "fetch the index again"
        )
    for tensor, name in names.items():
        if (
            not isinstance(name, str)
            or "/" in name
            or "\\" in name
            or name in ("", ".", "..")
            or "\0" in name
        ):
            raise FileError(
                f"{index}: {tensor}", repr(name)[:100], "a file name without folders", "fetch the index again"
            )
    return names


def _check_index(index: Path, homes: Mapping[str, Path]) -> None:
    for tensor, name in _weight_map(index).items():
        if tensor not in homes or homes[tensor].name != name:
            raise FileError(
                f"{index}: {tensor}", f"not in {name}", "where the index puts it", "fetch that file again"
            )
