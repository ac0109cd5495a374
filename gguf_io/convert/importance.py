"""Importance matrices as conversions use them: the form is in `gguf_io/imatrix.py`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.down_names import by_neuron, is_by_neuron
from hotcold.gguf_io.imatrix import COUNTS, IMATRIX, KIND, SUMS
from hotcold.gguf_io.mixes import layer_of
from hotcold.gguf_io.outtypes import PREDICTORS
from hotcold.gguf_io.reader import GGUFFile, open_gguf


def read_importance(
    path: Path | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """Mean squares of inputs, float32 [matrices, columns], of a model's tensors of these shapes that have them.

    Experts' matrices, which are one tensor, have a row each. Without a path none have. A matrix none of whose
    inputs was seen weighs all alike. A down projection with a row a neuron has none: its columns are outputs.

    Raises:
        FileError: no importance matrix, a damaged one, or one of another model.
    """
    if path is None:
        return {}
    found, seen = {}, set[str]()
    with _opened(path) as file:
        kind = file.metadata.get(KIND)
        if kind != IMATRIX:
            what = f"no {KIND}" if kind is None else f"{KIND} {kind}"
            raise FileError(f"imatrix {path}", what, "an importance matrix has imatrix", "give one")
        for tensor in file.tensors:
            if tensor.endswith(SUMS):
                name = tensor.removesuffix(SUMS)
                mean = _mean(path, file, name)
                if _is_of(path, name, mean, shapes):
                    found[name] = mean
                seen.add(name)
    for name, shape in shapes.items():
        if _has_inputs(name, shape) and name not in seen:
            raise _another_model(path, f"nothing for {name}", f"the model has {name}")
    return found


def _opened(path: Path) -> GGUFFile:
    try:
        return open_gguf(path)
    except FileError as error:
        thing = "imatrix" if error.thing == "model file" else error.thing
        step = "give one that llama.cpp or hotcold imatrix wrote"
        raise FileError(thing, error.value, error.bound, step) from error


def _mean(path: Path, file: GGUFFile, name: str) -> NDArray[np.float32]:
    sums, counts = (_numbers(path, file, name + end) for end in (SUMS, COUNTS))
    sums = sums.reshape(-1, sums.shape[-1])
    if counts.size != len(sums):
        bound = f"one for each of {len(sums)} matrices"
        raise FileError(f"{path}: {name}", f"{counts.size} counts", bound, "use another imatrix")
    counts = counts.reshape(-1, 1)
    mean = np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.float32(1))
    if not np.isfinite(mean).all() or (mean < 0).any():
        raise FileError(f"{path}: {name}", "NaN, infinite or below 0", "squares are not", "make it again")
    return mean


def _numbers(path: Path, file: GGUFFile, name: str) -> NDArray[np.float32]:
    info = file.tensors.get(name)
    if info is None or info.type is not GGMLQuantizationType.F32:
        what = "missing" if info is None else info.type.name
        raise FileError(f"{path}: {name}", what, "an imatrix has it in F32", "make it again")
    return np.array(file.data(name).view(np.float32).reshape(info.shape))


def _is_of(path: Path, name: str, mean: NDArray[np.float32], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the mean squares are of the columns of the model's tensor: else they are of its rows, as neurons.

    Raises:
        FileError: they are of neither.
    """
    shape = shapes.get(name, shapes.get(by_neuron(name)))
    if shape is None:
        raise _another_model(path, name, "the model has no such matrix")
    n_matrices = shape[0] if len(shape) > 2 else 1
    wanted = {"columns": (n_matrices, shape[-1])} if name in shapes else {}
    if name not in shapes or (len(shape) > 2 and by_neuron(name) != name):  # see `down_names`
        wanted["neurons"] = (n_matrices, shape[-2])
    if mean.shape not in wanted.values():
        found, (n, n_columns) = f"{mean.shape[1]} columns of {name}", next(iter(wanted.values()))
        bound = f"the model's has {n_columns}"
        if mean.shape[1] == n_columns:
            found, bound = f"{len(mean)} matrices of {name}", f"the model has {n}"
        raise _another_model(path, found, bound)
    return mean.shape == wanted.get("columns")


def _has_inputs(name: str, shape: tuple[int, ...]) -> bool:
    in_layer = layer_of(name) is not None and name.endswith("weight") and len(shape) > 1
    return in_layer and not name.endswith(PREDICTORS) and not is_by_neuron(name)


def _another_model(path: Path, found: str, bound: str) -> FileError:
    return FileError(f"imatrix {path}", found, bound, "it is of another model: give this one's")
