"""The tensors of a Hugging Face directory: safetensors files, or older ones of torch.

One file, or several, with their index or as their names count them. Safetensors count where both are there.
"""

import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.huggingface.other_kinds import refuse_quantised
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.safetensors_file import element_types, open_safetensors
from hotcold.gguf_io.source_tensor import SourceTensor, of_torch
from hotcold.gguf_io.torch_pickle import open_state_dict

SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
HEAD = "lm_head."


MXFP4_NAMES = ("_proj_blocks", "_proj_scales")
PARTS = re.compile(r"(model|pytorch_model)-(\d{5})-of-(\d{5})\.(safetensors|bin)")


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
    for name in (SAFE, TORCH):
        if (model_dir / name).is_file():
            return (model_dir / name,)
    return _parts(model_dir) or (model_dir / SAFE,)


def _parts(model_dir: Path) -> tuple[Path, ...]:
    """All parts of what is there in parts without an index, present or not; safetensors first."""
    found = (PARTS.fullmatch(path.name) for path in sorted(model_dir.iterdir()) if model_dir.is_dir())
    parts = sorted(
        (match.group(4) == "bin", match.group(1), match.group(3), match.group(4)) for match in found if match
    )
    if not parts:
        return ()
    _, stem, n_parts, ending = parts[0]
    return tuple(model_dir / f"{stem}-{i:05}-of-{n_parts}.{ending}" for i in range(1, int(n_parts) + 1))


def open_weights(model_dir: Path, prefix: str, mxfp4: bool = False) -> dict[str, SourceTensor]:
    """Every tensor of `model_dir` by name; headers are read and checked, numbers are not.

    `prefix` begins all names but the head's; a checkpoint of the model without its head leaves it out. `mxfp4`: the
    layout knows blocks of MXFP4, as gpt-oss's experts are published.

    Raises:
        FileError: a file is missing or damaged, a name occurs in two of them, or the index names a
            tensor that its file does not have; or the weights are quantised.
    """
    found: dict[str, SourceTensor] = {}
    homes: dict[str, Path] = {}
    files = weight_files(model_dir)
    types = [element_types(path) for path in files if path.suffix == ".safetensors"]
    named = dict(ChainMap(*types))
    refuse_quantised(model_dir, {n: t for n, t in named.items() if not (mxfp4 and n.endswith(MXFP4_NAMES))})
    for path in files:
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


def own_weights(
    tensors: Mapping[str, SourceTensor], renamed: Iterable[tuple[str, str]], beside: tuple[str, ...]
) -> dict[str, SourceTensor]:
    """Those of the text model, by the names that it has without others beside it.

    Args:
        renamed: beginnings of names, and what stands in their place.
        beside: beginnings of the other models' names.
    """
    own = (
        {name: tensor for name, tensor in tensors.items() if not name.startswith(beside)}
        if beside
        else tensors
    )
    return {_renamed(name, renamed): tensor for name, tensor in own.items()}


def _renamed(name: str, renamed: Iterable[tuple[str, str]]) -> str:
    return next((new + name.removeprefix(old) for old, new in renamed if name.startswith(old)), name)


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
        if not isinstance(name, str) or not _is_inside(name):
            raise FileError(
                f"{index}: {tensor}", repr(name)[:100], "a file within the folder", "fetch the index again"
            )
    return names


def _is_inside(name: str) -> bool:
    """Whether a path, with slashes, names a file in the folder or in one within."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and not {"\\", "\0"} & set(name)


def _check_index(index: Path, homes: Mapping[str, Path]) -> None:
    for tensor, name in _weight_map(index).items():
        if tensor not in homes or homes[tensor] != index.parent / name:
            raise FileError(
                f"{index}: {tensor}", f"not in {name}", "where the index puts it", "fetch that file again"
            )
