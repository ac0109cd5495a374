"""Experts that a directory stacks in one tensor a layer, as one matrix an expert, as most directories have them.

Granite's `input_linear` [n_expert, 2 n_ff, n_embd] has the gate's rows and then those of up. gpt-oss's `gate_up_proj`
has them in turns, gate first: as MXFP4, whose `_blocks` [n_expert, 2 n_ff, n_embd / 32, 16] hold two neighbours a byte,
the first in the low four bits, beside `_scales` with an exponent a block; or as plain numbers with columns for rows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.source_tensor import BYTES, SourceTensor

GRANITE, GPT_OSS = "granite", "gpt-oss"
MXFP4_CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
"""Numbers of E2M1 without their sign (OCP Microscaling Formats 1.0); codes 8 to 15 are these, negative."""
MXFP4_BIAS = 127  # of a scale's exponent

STACKED_NAMES = {
    GRANITE: (
        (r"(.*block_sparse_moe\.)experts\.\d+\.(?:gate|up)\.weight", "input_linear.weight"),
        (r"(.*block_sparse_moe\.)experts\.\d+\.down\.weight", "output_linear.weight"),
        (r"(.*shared_mlp\.)(?:gate|up)_proj\.weight", "input_linear.weight"),
        (r"(.*shared_mlp\.)down_proj\.weight", "output_linear.weight"),
    ),
    GPT_OSS: (
        (r"(.*mlp\.experts\.)\d+\.(?:gate|up)_proj\.weight", "gate_up_proj_blocks"),
        (r"(.*mlp\.experts\.)\d+\.down_proj\.weight", "down_proj_blocks"),
        (r"(.*mlp\.experts\.)(?:gate|up)_proj_bias", "gate_up_proj_bias"),
    ),
}
"""How a part is called, and what the directory calls the tensor that it is stacked in."""

Pick = Callable[[NDArray[Any]], NDArray[Any]]
Named = Iterator[SourceTensor]


def taken_apart(weights: Mapping[str, SourceTensor], kind: str, n_expert: int) -> dict[str, SourceTensor]:
    """All weights, those that are stacked replaced by their parts; numbers are read when a part is.

    Args:
        kind: GRANITE, GPT_OSS, or "" for a directory that stacks nothing.

    Raises:
        FileError: another number of experts, or blocks of MXFP4 that are none.
    """
    if not kind:
        return dict(weights)
    parts = _granite if kind == GRANITE else _gpt_oss
    return {part.name: part for name in weights for part in parts(name, weights, n_expert)}


def name_in_directory(name: str, kind: str) -> str:
    """What the directory calls the tensor in which a part is stacked; the name itself for others."""
    for pattern, stacked in STACKED_NAMES.get(kind, ()):
        if found := re.fullmatch(pattern, name):
            return found[1] + stacked
    return name


def _check(tensor: SourceTensor, shape: tuple[int, ...], dtype: str | None = None) -> None:
    """Refuse a tensor of another shape, or element type."""
    if tensor.shape != shape:
        bound = f"config.json and the tensors beside it say {list(shape)}"
        raise FileError(tensor.name, f"shape {list(tensor.shape)}", bound, "fetch both again")
    if dtype is not None and tensor.dtype != dtype:
        raise FileError(tensor.name, f"element type {tensor.dtype}", dtype, "fetch it again")


def _granite(name: str, weights: Mapping[str, SourceTensor], n_expert: int) -> Named:
    tensor = weights[name]
    experts = re.fullmatch(r"(.*block_sparse_moe\.)(input|output)_linear\.weight", name)
    shared = re.fullmatch(r"(.*shared_mlp\.)(input|output)_linear\.weight", name)
    found = experts or shared
    if found is None or len(tensor.shape) != (3 if experts else 2):
        yield tensor
        return
    if experts:
        _check(tensor, (n_expert, *tensor.shape[1:]))
    n_ff = tensor.shape[-2] // 2
    if found[2] == "output":
        picks: dict[str, tuple[int, Pick]] = {"down": (tensor.shape[-2], _all)}
    else:
        _check(tensor, (*tensor.shape[:-2], 2 * n_ff, tensor.shape[-1]))
        picks = {"gate": (n_ff, lambda rows: rows[:n_ff]), "up": (n_ff, lambda rows: rows[n_ff:])}
    for part, (n_rows, pick) in picks.items():
        shape = (n_rows, tensor.shape[-1])
        if not experts:
            yield _derived(f"{found[1]}{part}_proj.weight", shape, tensor, pick)
            continue
        for e in range(tensor.shape[0]):
            yield _derived(f"{found[1]}experts.{e}.{part}.weight", shape, tensor, pick, e)


def _gpt_oss(name: str, weights: Mapping[str, SourceTensor], n_expert: int) -> Named:
    found = re.fullmatch(r"(.*mlp\.experts\.)(gate_up|down)_proj(_bias|_blocks|_scales|)", name)
    if found is None:
        yield weights[name]
        return
    where, which, kind = found.groups()
    _check(weights[name], (n_expert, *weights[name].shape[1:]))
    picks: dict[str, Pick] = {"gate": lambda rows: rows[::2], "up": lambda rows: rows[1::2]}
    for part, pick in ({"down": _all} if which == "down" else picks).items():
        share = 2 if which == "gate_up" else 1
        if kind == "_bias":
            yield _biases(f"{where}{part}_proj_bias", weights[name], pick, share)
        elif kind == "":
            yield from _matrices(f"{where}{{}}.{part}_proj.weight", weights[name], pick, share)
        elif kind == "_blocks":
            scales = _scales(weights, name)
            yield from _blocks(f"{where}{{}}.{part}_proj.weight", weights[name], scales, pick, share)


def _biases(name: str, stacked: SourceTensor, pick: Pick, share: int) -> SourceTensor:
    shape = (stacked.shape[0], stacked.shape[-1] // share)
    _check(stacked, (shape[0], shape[1] * share))
    return _derived(name, shape, stacked, lambda numbers: pick(numbers.T).T)


def _matrices(name: str, stacked: SourceTensor, pick: Pick, share: int) -> Named:
    """Of plain numbers [n_expert, columns, rows]."""
    for e in range(stacked.shape[0]):
        shape = (stacked.shape[-1] // share, stacked.shape[1])
        _check(stacked, (stacked.shape[0], shape[1], shape[0] * share))
        yield _derived(name.format(e), shape, stacked, lambda numbers: pick(numbers.T), e)


def _scales(weights: Mapping[str, SourceTensor], blocks: str) -> SourceTensor:
    """Those of blocks of MXFP4, both checked."""
    name, given = blocks.replace("_blocks", "_scales"), weights[blocks]
    if name not in weights:
        raise FileError(f"tensor {blocks}", f"no {name}", "its scales", "fetch the weights again")
    _check(given, (*given.shape[:3], 16), BYTES)
    _check(weights[name], given.shape[:3], BYTES)
    return weights[name]


def _blocks(name: str, blocks: SourceTensor, scales: SourceTensor, pick: Pick, share: int) -> Named:
    for e in range(blocks.shape[0]):
        shape = (blocks.shape[1] // share, blocks.shape[2] * 32)
        _check(blocks, (blocks.shape[0], shape[0] * share, *blocks.shape[2:]))
        yield _of_mxfp4(name.format(e), shape, blocks, scales, pick, e)


def _all(rows: NDArray[Any]) -> NDArray[Any]:
    return rows


def _derived(
    name: str, shape: tuple[int, ...], stacked: SourceTensor, pick: Pick, expert: int | None = None
) -> SourceTensor:
    """What is picked of a stacked tensor, or of an expert's part of it."""

    def read() -> NDArray[Any]:
        numbers = stacked.read() if expert is None else stacked.entries(expert, expert + 1)[0]
        return np.ascontiguousarray(pick(numbers))

    return SourceTensor(name, shape, stacked.dtype, read)


def _of_mxfp4(
    name: str, shape: tuple[int, ...], blocks: SourceTensor, scales: SourceTensor, pick: Pick, expert: int
) -> SourceTensor:
    def read() -> NDArray[Any]:
        some = (each.entries(expert, expert + 1)[0] for each in (blocks, scales))
        return widened(*(pick(each) for each in some))

    return SourceTensor(name, shape, "F32", read)


def widened(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Numbers of MXFP4 blocks, uint8 [n_rows, n_blocks, 16] with scales [n_rows, n_blocks]: [n_rows, 32 n_blocks]."""
    codes = np.stack([blocks & 15, blocks >> 4], -1)
    numbers = np.where(codes < 8, 1, -1).astype(np.float32) * MXFP4_CODES[codes & 7]
    exponents = scales.astype(np.int32)[..., None, None] - MXFP4_BIAS
    return np.asarray(np.ldexp(numbers, exponents), np.float32).reshape(len(blocks), -1)
