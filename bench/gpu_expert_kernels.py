"""Cases of kernels of mixtures of experts: who is chosen, their matrices, and the sum of what they give."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from gpu_bed import Array, Bed, Weights
from gpu_case import Case, Sizes, normal, one, sample
from numpy.typing import NDArray

from hotcold.kernels import ref, ref_experts
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Prepared
from hotcold.kernels.cuda.expert_neurons import expert_down, expert_gates, expert_ups
from hotcold.kernels.cuda.expert_rows import ExpertProducts, expert_rows
from hotcold.kernels.cuda.expert_sum import expert_sum, mul_sigmoid
from hotcold.kernels.cuda.expert_tiles import expert_few, expert_tiles
from hotcold.kernels.cuda.hidden_masked import hidden_of_experts
from hotcold.kernels.cuda.scale import scale
from hotcold.kernels.cuda.top_k import top_k
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import ACTIVATIONS, EXACT_POSITIONS, GATINGS, n_groups
from hotcold.kernels.weight_table import QUANTISED

N_EXPERT, N_USED = 8, 2
GATING = "softmax"


def expert_cases(bed: Bed, sizes: Sizes) -> Iterator[Case]:
    """A batch's choices and sums, and a factor of one token's vector."""
    tokens, n = sizes.n_tokens, sizes.n_embd
    text, logits = f"{tokens} x {n}", normal(tokens, N_EXPERT)
    ids, weights = ref_experts.top_k(logits, N_USED, GATING)
    work, chosen = top_k(tokens, N_EXPERT, N_USED), bed.empty((tokens, 2 * N_USED), "i4")
    arguments = bed.put(logits), chosen, N_EXPERT, N_USED, GATINGS[GATING], 0, 1.0
    launch = work.prepare(bed.device, arguments)
    want = np.concatenate([ids / N_EXPERT, weights], 1)
    yield Case(f"{N_USED} of {N_EXPERT}", work, [launch], partial(_choices, bed, chosen), lambda: want)

    x, y, slots = normal(tokens, N_USED, n, seed=2), bed.empty((tokens, n), "f4"), _slots(bed)
    given = bed.put(x), slots, bed.put(_packed(ids, weights)), y, n, N_USED
    yield one(bed, text, expert_sum(tokens, N_USED, n), given, y, lambda: (x * weights[..., None]).sum(1))
    yield _threshold_case(bed, sizes, ids)
    gate = normal(tokens, 1, seed=3)
    given_gate = bed.put(x[:, 0]), bed.put(gate), y, n
    yield one(
        bed, text, mul_sigmoid(tokens, n), given_gate, y, lambda: ref_experts.mul_sigmoid(x[:, 0], gate)
    )
    scaled = bed.empty((1, n), "f4")
    yield one(bed, f"{n}", scale(n), (bed.put(x[0, :1]), scaled, n, 0.75), scaled, lambda: 0.75 * x[0, :1])


def _threshold_case(bed: Bed, sizes: Sizes, ids: NDArray[np.int32]) -> Case:
    """A batch's hidden values, about half of which stay below their experts' thresholds."""
    tokens, n_ff = sizes.n_tokens, sizes.n_ff // N_EXPERT
    gate, up = normal(tokens * N_USED, n_ff, seed=6), normal(tokens * N_USED, n_ff, seed=7)
    least = np.abs(normal(N_EXPERT, n_ff, seed=8)) / 3
    positions, of_pairs = np.arange(EXACT_POSITIONS, EXACT_POSITIONS + tokens), least[ids.reshape(-1)]
    act = ref.silu(gate.astype(np.float64))
    hidden = np.where(np.abs(act) < of_pairs, 0, act * up)
    h, lists = bed.empty(gate.shape, "f4"), (_slots(bed), bed.put(_packed(ids, np.ones(ids.shape))))
    work = hidden_of_experts(tokens, N_USED, n_ff, n_open=int((hidden != 0).sum()))
    given = bed.put(gate), bed.put(up), *lists, bed.put(least), bed.put(positions.astype(np.int32))
    numbers = n_ff, N_USED, ACTIVATIONS["silu"]
    return one(bed, f"{tokens} x {N_USED} x {n_ff}", work, (*given, h, *numbers), h, lambda: hidden)


def expert_product_cases(bed: Bed, weights: Weights) -> Iterator[Case]:
    """One token times the matrices of its experts, which are parts of one; then by the kernel for many tokens."""
    kind, n, n_rows = weights.kind, weights.n, weights.n_rows // N_EXPERT
    x, ids = normal(1, n), np.array([[1, N_EXPERT - 1]], np.int32)
    chosen, y = bed.put(_packed(ids, np.ones(ids.shape))), bed.empty((N_USED, n_rows), "f4")
    given, rows = (
        (*bed.inputs(kind, x), _slots(bed), chosen, y, y, n_rows, n, N_USED, 0, 0, 0),
        sample(n_rows),
    )
    planes = [weights.planes(0, copy, N_EXPERT * n_rows) for copy in range(weights.n_copies)]

    def want() -> Array:
        values = np.concatenate([weights.values(0, e * n_rows + rows) for e in ids[0]])
        return ref.mul_mat(values, x, kind in QUANTISED).reshape(N_USED, -1)

    of_token = ExpertProducts(kind, 1, N_USED, n_rows, n)
    by_expert = expert_tiles(of_token, N_EXPERT, N_USED), expert_few(of_token, N_EXPERT, N_USED)
    for work, more in ((expert_rows(of_token), ()), *((work, (N_USED,)) for work in by_expert)):
        launches = [work.prepare(bed.device, (*of_copy, *given, *more)) for of_copy in planes]
        yield Case(f"{N_USED} x {n_rows} x {n}", work, launches, lambda: bed.get(y)[:, rows], want)


def expert_neuron_cases(bed: Bed, weights: Weights) -> Iterator[Case]:
    """The same of experts with a row a neuron, all of which are there: gates, then ups, then the sums of down rows."""
    kind, n, n_ff = weights.kind, weights.n, weights.n_rows // N_EXPERT
    x, ids = normal(1, n), np.array([[1, N_EXPERT - 1]], np.int32)
    chosen, given = bed.put(_packed(ids, np.ones(ids.shape))), bed.inputs(kind, x)
    starts = bed.put(n_ff * np.arange(N_EXPERT + 1, dtype=np.int32))
    gates, before = bed.empty((N_USED, n_ff), "f4"), normal(N_USED, n_ff, seed=4)
    hidden, live = bed.put(before), bed.put(before)
    partial_sums = bed.empty((N_USED, n_groups(n_ff), n), "f4")
    rows, text = sample(n_ff), f"{N_USED} x {n_ff} x {n}"

    def launches(work: Work, *arguments: object) -> list[Prepared]:
        planes = (weights.planes(0, copy, N_EXPERT * n_ff) for copy in range(weights.n_copies))
        return [work.prepare(bed.device, (*of_copy, *arguments)) for of_copy in planes]

    def products() -> Array:
        values = np.concatenate([weights.values(0, e * n_ff + rows) for e in ids[0]])
        return ref.mul_mat(values, x, kind in QUANTISED).reshape(N_USED, -1)

    def sums() -> Array:
        values = [weights.values(0, e * n_ff + np.arange(n_ff)).astype(np.float64) for e in ids[0]]
        return np.stack([h @ down for h, down in zip(before.astype(np.float64), values, strict=True)])

    of_token = ExpertProducts(kind, 1, N_USED, n_ff, n)
    work = expert_gates(of_token)
    of_gates = launches(work, *given, starts, chosen, gates, n_ff, n, N_USED)
    yield Case(text, work, of_gates, lambda: bed.get(gates)[:, rows], products)
    work, activation = expert_ups(of_token), ACTIVATIONS["silu"]
    of_ups = launches(work, *given, starts, chosen, hidden, n_ff, n, N_USED, activation, hidden, chosen, 0)

    def opened() -> Array:
        return ref.gated(before[:, rows].astype(np.float64), products(), "silu")

    yield Case(text, work, of_ups, lambda: bed.get(hidden)[:, rows], opened)
    work = expert_down(of_token)
    of_down = launches(work, starts, chosen, live, partial_sums, n_ff, n, N_USED)
    yield Case(text, work, of_down, lambda: bed.get(partial_sums).sum(1, dtype=np.float64), sums)


def _slots(bed: Bed) -> Buffer:
    """Every expert is there, in its own place."""
    return bed.put(np.arange(N_EXPERT, dtype=np.int32))


def _packed(ids: NDArray[np.int32], weights: Array) -> NDArray[np.int32]:
    """As `top_k` leaves them: numbers of experts, then their weights."""
    return np.concatenate([ids, weights.astype(np.float32).view(np.int32)], axis=1)


def _choices(bed: Bed, chosen: Buffer) -> Array:
    """Numbers of experts in shares of all, so that they do not drown the weights; then these."""
    got = bed.get(chosen).astype(np.int32)
    return np.concatenate([got[:, :N_USED] / N_EXPERT, got[:, N_USED:].copy().view(np.float32)], axis=1)
