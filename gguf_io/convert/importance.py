"""Importance matrices as conversions use them: the form is in `gguf_io/imatrix.py`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.imatrix import COUNTS, IMATRIX, KIND, SUMS
from hotcold.gguf_io.mixes import layer_of
from hotcold.gguf_io.outtypes import PREDICTORS
from hotcold.gguf_io.reader import GGUFFile, open_gguf

BY_NEURON = "ffn_down_t.weight"  # whose columns are outputs, of which a matrix says nothing


def read_importance(
    path: Path | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """Mean squares of inputs, float32 [columns], of the matrices of a model with these shapes that have them.

    Without a path none have. A matrix none of whose inputs was seen weighs all alike.

    Raises:
        FileError: no importance matrix, a damaged one, or one of another model.
    """
    if path is None:
        return {}
    found = {}
    with open_gguf(path) as file:
        kind = file.metadata.get(KIND)
        if kind != IMATRIX:
            what = f"no {KIND}" if kind is None else f"{KIND} {kind}"
            raise FileError(f"imatrix {path}", what, "an importance matrix has imatrix", "give one")
        for tensor in file.tensors:
            if tensor.endswith(SUMS):
                name = tensor.removesuffix(SUMS)
                found[name] = _mean(path, file, name)
                _check_shape(path, name, found[name], shapes)
    for name, shape in shapes.items():
        if _has_inputs(name, shape) and name not in found:
            raise _another_model(path, f"nothing for {name}", f"the model has {name}")
    return found


def _mean(path: Path, file: GGUFFile, name: str) -> NDArray[np.float32]:
    sums, counts = (_numbers(path, file, name + end) for end in (SUMS, COUNTS))
    if counts.size != 1:
        raise FileError(
            f"{path}: {name}", f"{counts.size} counts", "one matrix has one", "use another imatrix"
        )
    mean = sums / counts[0] if counts[0] > 0 else np.ones_like(sums)
    if not np.isfinite(mean).all() or (mean < 0).any():
        raise FileError(f"{path}: {name}", "NaN, infinite or below 0", "squares are not", "make it again")
    return mean


def _numbers(path: Path, file: GGUFFile, name: str) -> NDArray[np.float32]:
    info = file.tensors.get(name)
    if info is None or info.type is not GGMLQuantizationType.F32:
        what = "missing" if info is None else info.type.name
        raise FileError(f"{path}: {name}", what, "an imatrix has it in F32", "make it again")
    return np.array(file.data(name).view(np.float32).reshape(-1))


def _check_shape(
    path: Path, name: str, mean: NDArray[np.float32], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    by_neuron = name.replace("ffn_down.weight", BY_NEURON)
    if name not in shapes and by_neuron not in shapes:
        raise _another_model(path, name, "the model has no such matrix")
    n = shapes[name][-1] if name in shapes else shapes[by_neuron][0]
    if mean.size != n:
        raise _another_model(path, f"{mean.size} columns of {name}", f"the model's has {n}")


def _has_inputs(name: str, shape: tuple[int, ...]) -> bool:
    in_layer = layer_of(name) is not None and name.endswith("weight") and len(shape) > 1
    return in_layer and not name.endswith((*PREDICTORS, BY_NEURON))


def _another_model(path: Path, found: str, bound: str) -> FileError:
    return FileError(f"imatrix {path}", found, bound, "it is of another model: give this one's")
