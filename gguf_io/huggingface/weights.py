"""The tensors of a Hugging Face directory: safetensors files, or older ones of torch.

One file, or several with their index. Safetensors count where both are there.
"""

from collections.abc import Mapping
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.safetensors_file import open_safetensors
from hotcold.gguf_io.source_tensor import SourceTensor, of_torch
from hotcold.gguf_io.torch_pickle import open_state_dict

SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
HEAD = "lm_head."


def index_file(model_dir: Path) -> Path | None:
    """The index, if there is one."""
    for name in (SAFE, TORCH):
        if (model_dir / f"{name}.index.json").exists():
            return model_dir / f"{name}.index.json"
        if (model_dir / name).is_file():
            return None
    return None


def weight_files(model_dir: Path) -> tuple[Path, ...]:
    """The files of `model_dir` with weights, present or not, in the order of their names.

    Raises:
        FileError: the index is damaged or names a file outside `model_dir`.
    """
    if (index := index_file(model_dir)) is not None:
        return tuple(model_dir / name for name in sorted(set(_weight_map(index).values())))
    if not (model_dir / SAFE).is_file() and (model_dir / TORCH).is_file():
        return (model_dir / TORCH,)
    return (model_dir / SAFE,)


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
        for name, tensor in _open(path).items():
            if name in found:
                raise FileError(
                    f"tensor {name}", f"in {homes[name]} and {path}", "one file each", "fetch them again"
                )
            found[name], homes[name] = tensor, path
    if (index := index_file(model_dir)) is not None:
        _check_index(index, homes)
    if not any(name.startswith(prefix) for name in found):
        return {name if name.startswith(HEAD) else prefix + name: found[name] for name in found}
    return found


def _open(path: Path) -> dict[str, SourceTensor]:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    return {name: of_torch(name, tensor) for name, tensor in open_state_dict(path).items()}


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
