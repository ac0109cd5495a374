"""Cases of kernels with weights: products of one vector and of a batch, and the sparse FFN."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from gpu_bed import Array, Bed, Weights
from gpu_case import EXACT, LISTED, Case, Sizes, normal, sample
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cuda.dense_gated_ffn import gated_ffn_hidden
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matmul_few import FEW_SIDE, matmul_few
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.cuda.matvec import matvec, matvec_mask
from hotcold.kernels.cuda.matvec3 import Rooms, matvec3
from hotcold.kernels.cuda.sparse_ffn import sparse_ffn
from hotcold.kernels.cuda.sparse_gated_ffn import sparse_gated_ffn
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.formats import (
    ACTIVATIONS,
    EXACT_POSITIONS,
    mask_words,
    n_groups,
)
from hotcold.kernels.weight_table import QUANTISED


def product_cases(bed: Bed, sizes: Sizes, weights: Weights) -> Iterator[Case]:
    """One input times matrices, of a token and of a batch."""
    kind, n_rows, n, rows = weights.kind, weights.n_rows, weights.n, sample(weights.n_rows)
    text, quantised = f"{n_rows} x {n}", kind in QUANTISED
    x = normal(1, n)
    given, y = bed.inputs(kind, x), bed.empty((1, n_rows), "f4")
    work = matvec(kind, 1, n_rows, n)
    launches = [
        work.prepare(bed.device, (*weights.planes(which, copy), *given, y, y, y, n_rows, n, 0))
        for copy in range(weights.n_copies)
        for which in range(3)
    ]

    def product(inputs: NDArray[np.float32]) -> Array:
        return ref.mul_mat(weights.values(0, rows), inputs, quantised)

    yield Case(text, work, launches, lambda: bed.get(y)[:, rows], partial(product, x))
    yield _mask_case(bed, weights, given, ref.mul_mat(weights.values(0, np.arange(n_rows)), x, quantised))
    for sizes_of, n_tokens in ((matmul, sizes.n_tokens), (matmul_few, FEW_SIDE), (matmul_few, 4 * FEW_SIDE)):
        batch = normal(n_tokens, n, seed=2)
        inputs, ys = bed.inputs(kind, batch), bed.empty((n_tokens, n_rows), "f4")
        work, rest = sizes_of(kind, n_tokens, n_rows, n), (ys, ys, ys, n_rows, n, 0, n_tokens)
        launches = [
            work.prepare(bed.device, (*weights.planes(0, copy), *inputs, *rest))
            for copy in range(weights.n_copies)
        ]
        yield Case(
            f"{text} by {n_tokens}", work, launches, partial(_of_rows, bed, ys, rows), partial(product, batch)
        )


def _of_rows(bed: Bed, ys: Buffer, rows: NDArray[np.int64]) -> Array:
    """Those of a batch's products that the oracle works out."""
    return bed.get(ys)[:, rows]


def _mask_case(bed: Bed, weights: Weights, given: Sequence[Buffer], y: Array) -> Case:
    """A predictor's second matrix; the threshold lies where no product is near."""
    kind, n_rows, n = weights.kind, weights.n_rows, weights.n
    words, ascending = mask_words(n_rows), np.sort(y.ravel())
    some = ascending[int(0.85 * n_rows) : int(0.95 * n_rows) + 2]
    at = int(np.diff(some).argmax())
    threshold = float(some[at] + some[at + 1]) / 2
    work, mask = matvec_mask(kind, 1, n_rows, n), bed.empty(words, "u4")
    launches = [
        work.prepare(bed.device, (*weights.planes(0, copy), *given, mask, n_rows, n, threshold))
        for copy in range(weights.n_copies)
    ]

    def want() -> Array:
        listed = np.pad(~(y < threshold), ((0, 0), (0, 32 * words - n_rows)))
        return np.asarray(ref.mask_bits(listed)[0])

    return Case(f"{n_rows} x {n}", work, launches, partial(bed.get, mask), want, EXACT)


def ffn_cases(bed: Bed, sizes: Sizes, weights: Weights) -> Iterator[Case]:
    """Several matrices in one launch, of a token."""
    kind, n_rows, n, quantised = weights.kind, weights.n_rows, weights.n, weights.kind in QUANTISED
    x = normal(1, n)
    given = bed.inputs(kind, x)
    yield _three_case(bed, sizes, weights, given, x)
    rows, h = sample(n_rows), bed.empty((1, n_rows), "f4")
    work = gated_ffn_hidden((kind, kind), 1, n_rows, n)
    launches = [
        work.prepare(
            bed.device,
            (*weights.planes(0, copy), *weights.planes(1, copy), *given, h, n_rows, n, ACTIVATIONS["silu"]),
        )
        for copy in range(weights.n_copies)
    ]

    def hidden_values() -> Array:
        gate, up = (ref.mul_mat(weights.values(which, rows), x, quantised) for which in (0, 1))
        return ref.gated(gate, up, "silu")

    yield Case(f"2 x {n_rows} x {n}", work, launches, lambda: bed.get(h)[:, rows], hidden_values)
    yield from _sparse_cases(bed, weights, given, x)
    yield _down_case(bed, sizes, weights)


def _down_case(bed: Bed, sizes: Sizes, weights: Weights) -> Case:
    """A batch's hidden values times a down matrix with a row a neuron."""
    kind, n_rows, n, tokens = weights.kind, weights.n_rows, weights.n, sizes.n_tokens
    h, y = normal(tokens, n_rows, seed=9), bed.empty((tokens, n), "f4")
    given, work = bed.put(h), matmul_transposed(kind, tokens, n_rows, n)
    all_rows, groups = (bed.empty(1, "i4"),) * 2, n_groups(n_rows)
    launches = [
        work.prepare(
            bed.device, (*weights.planes(2, copy), given, *all_rows, y, n_rows, n, tokens, groups, 0)
        )
        for copy in range(weights.n_copies)
    ]

    def want() -> Array:
        return np.asarray(h.astype(np.float64) @ weights.values(2, np.arange(n_rows)).astype(np.float64))

    return Case(f"{tokens} by {n_rows} x {n}", work, launches, partial(bed.get, y), want)


def _three_case(
    bed: Bed, sizes: Sizes, weights: Weights, given: Sequence[Buffer], x: NDArray[np.float32]
) -> Case:
    kind, n, n_kv = weights.kind, weights.n, sizes.n_head_kv * sizes.head_dim
    counts = (n, n_kv, n_kv)
    outs = [bed.empty(count, "f4") for count in counts]
    work = matvec3((kind, kind, kind), 1, counts, n)
    launches = []
    for copy in range(weights.n_copies):
        planes = [p for which, count in enumerate(counts) for p in weights.planes(which, copy, count)]
        launches.append(
            work.prepare(
                bed.device, (*planes, *given, *outs, *outs, *counts, n, 0, *Rooms.none(outs[0]).arguments)
            )
        )

    def want() -> Array:
        values = [weights.values(which, sample(count)) for which, count in enumerate(counts)]
        return np.concatenate([ref.mul_mat(each, x, kind in QUANTISED).ravel() for each in values])

    def got() -> Array:
        return np.concatenate([bed.get(y)[sample(count)] for y, count in zip(outs, counts, strict=True)])

    return Case(" + ".join(map(str, counts)) + f" x {n}", work, launches, got, want)


def _threshold_case(
    bed: Bed,
    weights: Weights,
    given: Sequence[Buffer],
    x: NDArray[np.float32],
    listing: tuple[NDArray[np.int64], tuple[Buffer, ...], Buffer, Callable[[], Array]],
) -> Case:
    """The same of a SiLU model, with thresholds of which about half of the listed neurons stay well below."""
    kind, n_rows, n, quantised = weights.kind, weights.n_rows, weights.n, weights.kind in QUANTISED
    rows, lists, sums, reduced = listing
    gate, up, down = (weights.values(which, rows) for which in range(3))
    act = ref.silu(ref.mul_mat(gate, x, quantised))[0]
    is_small = np.random.default_rng(9).random(len(rows)) < 0.5
    least = np.zeros(n_rows, np.float32)
    least[rows] = np.abs(act) * np.where(is_small, 2, 0.5)
    thresholds = bed.put(least), bed.put(np.array([EXACT_POSITIONS], np.int32)), 1
    n_open, silu = int((~is_small).sum()), ACTIVATIONS["silu"]
    sizes, words = (1, n_rows, n, n_rows, len(rows), n_open), mask_words(n_rows)
    work = sparse_gated_ffn((kind, kind, kind), *sizes, has_least=True)
    launches = []
    for copy in range(weights.n_copies):
        planes = [p for which in range(3) for p in weights.planes(which, copy)]
        arguments = (*planes, *given, *lists, sums, words, n, silu, *thresholds)
        launches.append(work.prepare(bed.device, arguments))
    oracle = partial(
        ref.sparse_gated_ffn, x, gate, up, down, None, quantised, "silu", (least[rows], EXACT_POSITIONS)
    )
    return Case(f"{n_open} of {len(rows)} of {n_rows} x {n}", work, launches, reduced, oracle)


def _sparse_cases(
    bed: Bed, weights: Weights, given: Sequence[Buffer], x: NDArray[np.float32]
) -> Iterator[Case]:
    kind, n_rows, n, quantised = weights.kind, weights.n_rows, weights.n, weights.kind in QUANTISED
    rows = np.flatnonzero(np.random.default_rng(7).random(n_rows) < LISTED)
    text, groups = f"{len(rows)} of {n_rows} x {n}", n_groups(n_rows)
    words, listed = mask_words(n_rows), np.zeros((2, n_rows), bool)
    listed[0, rows], listed[1] = True, True
    bits = np.zeros((2, words), np.uint32)
    bits[:, : -(-n_rows // 32)] = ref.mask_bits(listed)
    lists = *(bed.put(each) for each in bits), bed.put(np.zeros(1, np.uint32))
    sums, y = bed.empty((1, groups, n), "f4"), bed.empty((1, n), "f4")
    reduce = sum_groups(1, n_rows, n).prepare(bed.device, (sums, y, y, y, y, groups, n, 0))
    values, relu = [weights.values(which, rows) for which in range(3)], ACTIVATIONS["relu"]
    first = ref.mul_mat(values[0], x, quantised)
    n_open = int((first > 0).sum())

    def reduced() -> Array:
        bed.device.run(reduce, bed.device.compute)
        return bed.get(y)

    work = sparse_gated_ffn((kind, kind, kind), 1, n_rows, n, n_rows, len(rows), n_open)
    launches = []
    for copy in range(weights.n_copies):
        planes = [p for which in range(3) for p in weights.planes(which, copy)]
        unread = sums, bed.empty(1, "i4"), 0
        launches.append(work.prepare(bed.device, (*planes, *given, *lists, sums, words, n, relu, *unread)))
    gate, up, down = values
    yield Case(
        text, work, launches, reduced, partial(ref.sparse_gated_ffn, x, gate, up, down, None, quantised)
    )
    yield _threshold_case(bed, weights, given, x, (rows, lists, sums, reduced))

    bias, neurons = normal(n_rows, seed=8), bed.put(np.arange(n_rows, dtype=np.int32))
    n_open = int((first + bias[rows] > 0).sum())
    work, bias_given = sparse_ffn((kind, kind), 1, n_rows, n, n_rows, len(rows), n_open), bed.put(bias)
    launches = []
    for copy in range(weights.n_copies):
        planes = [p for which in (0, 2) for p in weights.planes(which, copy)]
        arguments = (*planes, *given, bias_given, neurons, *lists, sums, words, n, 1, relu)
        launches.append(work.prepare(bed.device, arguments))
    oracle = partial(ref.sparse_ffn, x, values[0], bias[rows], values[2], None, quantised)
    yield Case(text, work, launches, reduced, oracle)
