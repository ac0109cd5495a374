"""Turns source tensors into output tensors: reordered, in the wanted type, slab by slab."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import blocks
from hotcold.gguf_io.architectures.table import Layout
from hotcold.gguf_io.source_tensor import SourceTensor, as_float32
from hotcold.gguf_io.writer import OutputTensor

T = GGMLQuantizationType

SLAB_ELEMENTS = 4 << 20
OTHERS = {kind.name.lower(): kind for kind in (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0)}  # for what is too large
MOST_OF_BLOCKS = 65504.0 * 128 * 32
"""What Q6_K holds, and no other type with half floats for scales more; squares of much larger numbers, by which
its search goes, have no float32, and the scale that it finds would be 0."""


def output_shape(source: SourceTensor, layout: Layout) -> tuple[int, ...]:
    """NumPy order, as written."""
    if layout == "one_row":
        return source.shape[1:]
    return source.shape[::-1] if layout == "transpose" else source.shape


def stacked_tensor(name: str, parts: Sequence[OutputTensor]) -> OutputTensor:
    """Matrices of one shape and type, one behind the other, as one tensor; made one by one."""

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for part in parts:
            yield from part.chunks()

    first = parts[0]
    return OutputTensor(name, first.type, (*first.ne, len(parts)), len(parts) * first.n_bytes, chunks)


def output_tensor(
    name: str,
    source: SourceTensor,
    layout: Layout,
    heads: tuple[int, int],
    type_: GGMLQuantizationType,
    warn: Callable[[str], None],
    importance: NDArray[np.float32] | None = None,
) -> OutputTensor:
    """`source` as tensor `name` of the file, in type `type_`, errors weighed by `importance` (see `encode`).

    `heads` are n_head and n_head_kv, for layouts that reorder rows by head. `warn` hears of numbers
    that are not finite while the chunks are made, which refuse numbers that are too large for the type.
    """
    shape = output_shape(source, layout)
    n_bytes = math.prod(shape[:-1]) * blocks.row_bytes(type_, shape[-1])

    def chunks() -> Iterator[NDArray[np.uint8]]:
        stored = source.read()
        rows = stored.T if layout == "transpose" else stored.reshape(shape)
        order = row_order(layout, shape[0], heads)
        for slab in _slabs(rows, order):
            numbers = as_float32(slab, source.dtype)
            yield encode(name, numbers + 1 if layout == "plus_one" else numbers, type_, warn, importance)

    return OutputTensor(name, type_, shape[::-1], n_bytes, chunks)


def no_down(model: Path) -> SettingError:
    """The refusal of a sparse layout."""
    bound = f"{model} has no ffn_down of its own in a layer, such as a mixture with one tensor an expert"
    return SettingError("sparse_layout", True, bound, "leave it out")


def check_biases(model: Path, names: Iterable[str]) -> None:
    """SettingError if a sparse layout is for experts with biases, which have some among these names."""
    if biases := [name for name in names if name.endswith("_exps.bias")]:
        bound = f"{model.name} has {biases[0]}, and no kernel reads biases of experts by neuron"
        raise SettingError("sparse_layout", True, bound, "leave it out")


def row_order(layout: Layout, n_rows: int, heads: tuple[int, int]) -> NDArray[np.intp] | None:
    """For each row of the file's tensor the row that it comes from; None where rows stay."""
    if layout == "permute_q":
        return pair_order(n_rows, heads[0])
    if layout == "permute_k":
        return pair_order(n_rows, heads[1])
    if layout == "stack_qkv":
        return stack_order(n_rows, *heads)
    return None


def stack_order(n_rows: int, n_head: int, n_head_kv: int) -> NDArray[np.intp]:
    """For each row of stacked queries, keys and values the row that it comes from.

    The source has a group for each key and value head: its queries, its key, its value.
    """
    n_queries = n_head // n_head_kv
    head_dim = n_rows // (n_head + 2 * n_head_kv)
    groups = np.arange(n_rows).reshape(n_head_kv, n_queries + 2, head_dim)
    parts = (groups[:, :n_queries], groups[:, n_queries], groups[:, n_queries + 1])
    return np.concatenate([part.reshape(-1) for part in parts])


def pair_order(n_rows: int, n_head: int) -> NDArray[np.intp]:
    """For each row of a permuted matrix the row that it comes from.

    Row i of the first half of a head goes to 2i, row i of the second half to 2i + 1.
    """
    half = n_rows // n_head // 2
    return np.arange(n_rows).reshape(n_head, 2, half).swapaxes(1, 2).reshape(n_rows)


def _slabs(rows: NDArray[Any], order: NDArray[np.intp] | None) -> Iterator[NDArray[Any]]:
    """`rows` in order, in pieces of about `SLAB_ELEMENTS`."""
    if rows.ndim < 2:
        yield rows if order is None else rows[order]
        return
    step = max(1, SLAB_ELEMENTS // max(1, rows.shape[1]))
    for first in range(0, rows.shape[0], step):
        yield rows[first : first + step] if order is None else rows[order[first : first + step]]


def encode(
    name: str,
    numbers: NDArray[np.float32],
    type_: GGMLQuantizationType,
    warn: Callable[[str], None],
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Rows of tensor `name` rounded to the type: uint8 [n_rows, bytes a row].

    `importance` [n] says how much an error in each column weighs, where the type weighs errors.
    `warn` hears of numbers that are not finite.

    Raises:
        FileError: numbers that are too large for the type.
    """
    rows = numbers.reshape(-1, numbers.shape[-1])
    finite = np.isfinite(rows).all(-1)
    if not finite.all():
        warn(f"{name} holds NaN or infinity in the source")
    with np.errstate(all="ignore"):  # what becomes infinite is refused by the tensor's name instead
        encoded = blocks.quantize(numbers, type_, importance)
        by_row = encoded.reshape(len(rows), -1)
        if not finite.all():
            rows, by_row = rows[finite], by_row[finite]
        if not _holds(rows, by_row, type_):
            raise _too_large(name, rows, type_)
    return encoded


def _holds(rows: NDArray[np.float32], encoded: NDArray[np.uint8], type_: GGMLQuantizationType) -> bool:
    """Whether finite numbers have stayed so; scales of blocks and F16 are half floats, which end at 65504."""
    scaled = type_ in blocks.SCALE_BYTES and blocks.SCALE_BYTES[type_].stop > 0
    if scaled and rows.size and max(rows.max(), -rows.min()) > MOST_OF_BLOCKS:
        return False
    return type_ is GGMLQuantizationType.F32 or bool(np.isfinite(_halves(encoded, type_)).all())


def _too_large(name: str, rows: NDArray[np.float32], type_: GGMLQuantizationType) -> FileError:
    """The refusal, with the outtypes that hold these numbers."""
    others = {
        outtype: kind
        for outtype, kind in OTHERS.items()
        if not rows.shape[-1] % blocks.block_size(kind) and _holds(rows, blocks.quantize(rows, kind), kind)
    }
    bound = f"too large for {type_.name}"
    return FileError(
        f"tensor {name}: number",
        float(rows.flat[np.abs(rows).argmax()]),
        bound,
        f"use --outtype {' or '.join(others)}",
    )


def _halves(encoded: NDArray[np.uint8], type_: GGMLQuantizationType) -> NDArray[Any]:
    if type_ is GGMLQuantizationType.BF16:
        return as_float32(encoded.view("<u2"), "BF16")
    if type_ is GGMLQuantizationType.F16:
        return encoded.view("<f2")
    rows = encoded.reshape(-1, blocks.type_size(type_))
    return np.ascontiguousarray(rows[:, blocks.SCALE_BYTES[type_]]).view("<f2")
