"""Mixtures of experts: which experts a token goes to, and their matrices' products with the tokens that chose them.

A pair is a token and one of its experts. Pairs lie in the order of their experts, then of their tokens, so an
expert's pairs are a batch of its own for the kernels of other matrices; each thread has a record, `own`, that it
fills in for one expert after the other.

What `group` writes, int64 each: how many experts have pairs, how many pairs there are; for each of those experts
its number, its first pair, and how many; from `pair_tokens` on the token of each pair.
"""

import math
import mmap

from hotcold.kernels.cpu import elementwise, ffn, ffn_batch, ffn_down, operations, tiles
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.operations import load_f32, load_i32, load_i64, store_f32, store_i32, store_i64
from hotcold.kernels.cpu.program import N_PARAMETERS, N_PAST, SIGMOID_GATING, SOFTMAX_CHOSEN_GATING
from hotcold.kernels.cpu.sizes import GROUP_ENTRY, GROUP_HEAD
from hotcold.kernels.formats import EXACT_POSITIONS

SMALLEST_SUM = 2.0**-14  # that weights are divided by
PAGE = mmap.PAGESIZE


@compiled
def pair_tokens(groups: int, n_expert: int) -> int:
    """Where the tokens of the pairs lie."""
    return groups + GROUP_HEAD + GROUP_ENTRY * n_expert


@compiled
def n_pairs(groups: int) -> int:
    """How many pairs there are."""
    return load_i64(groups + 8)


@compiled
def top_k(logits: int, n_expert: int, n_used: int, gating: int, normed: int, scale: float, y: int) -> None:
    """The n_used largest logits, of equal ones the first: their numbers, ascending, as int32, then their weights.

    A NaN is chosen last.
    """
    value, at = math.inf, -1
    for i in range(n_used):
        best, where = -math.inf, -1
        for e in range(n_expert):
            v = float(load_f32(logits + 4 * e))
            behind = v < value or (v == value and e > at)
            if behind and (where < 0 or v > best):
                best, where = v, e
        if where < 0:
            where = _first_missing(y, i)
        else:
            value, at = best, where
        _insert(y, i, where)
    _weigh(logits, n_expert, n_used, gating, normed, scale, y)


@compiled
def _first_missing(ids: int, n: int) -> int:
    """The smallest number that is not among n ascending ones."""
    for i in range(n):
        if load_i32(ids + 4 * i) != i:
            return i
    return n


@compiled
def _insert(ids: int, n: int, e: int) -> None:
    """Put a number among n ascending ones."""
    i = n
    while i > 0 and load_i32(ids + 4 * (i - 1)) > e:
        store_i32(ids + 4 * i, load_i32(ids + 4 * (i - 1)))
        i -= 1
    store_i32(ids + 4 * i, e)


@compiled
def _weigh(logits: int, n_expert: int, n_used: int, gating: int, normed: int, scale: float, y: int) -> None:
    """Write the weights of the chosen behind their numbers."""
    top, total, weights = -math.inf, 0.0, y + 4 * n_used
    if gating != SIGMOID_GATING:
        n = n_used if gating == SOFTMAX_CHOSEN_GATING else n_expert
        for i in range(n):
            e = load_i32(y + 4 * i) if gating == SOFTMAX_CHOSEN_GATING else i
            top = max(top, float(load_f32(logits + 4 * e)))
        for i in range(n):
            e = load_i32(y + 4 * i) if gating == SOFTMAX_CHOSEN_GATING else i
            total += math.exp(float(load_f32(logits + 4 * e)) - top)
    chosen = 0.0
    for i in range(n_used):
        v = float(load_f32(logits + 4 * load_i32(y + 4 * i)))
        chosen += 1 / (1 + math.exp(-v)) if gating == SIGMOID_GATING else math.exp(v - top) / total
    divisor = max(chosen, SMALLEST_SUM) if normed else 1.0
    for i in range(n_used):
        v = float(load_f32(logits + 4 * load_i32(y + 4 * i)))
        weight = 1 / (1 + math.exp(-v)) if gating == SIGMOID_GATING else math.exp(v - top) / total
        store_f32(weights + 4 * i, operations.to_f32(weight / divisor * scale))


@compiled
def group(op, n_tokens: int, counts: int) -> int:  # type: ignore[no-untyped-def]
    """Put the pairs of n_tokens tokens in order; how many neurons they have.

    Args:
        op: x: what `top_k` chose, of op.k experts each; w: addresses of op.n_rows experts' first matrix, 0 for
            an expert that is not here, whose pairs are left out; y: what is written; z: int64 [n_tokens, op.k],
            the pair of each token's choices, -1 for none.
        counts: address of op.n_rows int64 of the thread's own memory.
    """
    for e in range(op.n_rows):
        store_i64(counts + 8 * e, 0)
    for t in range(n_tokens):
        for i in range(op.k):
            e = load_i32(op.x + t * op.x_stride + 4 * i)
            store_i64(counts + 8 * e, load_i64(counts + 8 * e) + 1)
    n_active, total, listed = 0, 0, 0
    for e in range(op.n_rows):
        n = load_i64(counts + 8 * e) if load_i64(op.w + 8 * e) != 0 else 0
        store_i64(counts + 8 * e, total)  # from here on: the expert's next pair
        if n:
            entry = op.y + GROUP_HEAD + GROUP_ENTRY * n_active
            store_i64(entry, e)
            store_i64(entry + 8, total)
            store_i64(entry + 16, n)
            n_active += 1
            total += n
            listed += n * (load_i64(op.listed + 8 * e) if op.listed else op.n_listed)
    store_i64(op.y, n_active)
    store_i64(op.y + 8, total)
    tokens = pair_tokens(op.y, op.n_rows)
    for t in range(n_tokens):
        for i in range(op.k):
            e, pair = load_i32(op.x + t * op.x_stride + 4 * i), -1
            if load_i64(op.w + 8 * e) != 0:
                pair = load_i64(counts + 8 * e)
                store_i64(counts + 8 * e, pair + 1)
                store_i64(tokens + 8 * pair, t)
            store_i64(op.z + 8 * (t * op.k + i), pair)
    return listed


@compiled
def will_need(op, n_tokens: int, first: int, last: int) -> None:  # type: ignore[no-untyped-def]
    """Give the system advice of the matrices of experts first..last-1 that are here and that a token chose."""
    for e in range(first, last):
        if load_i64(op.w + 8 * e) != 0 and _is_chosen(op, n_tokens, e):
            _advise(load_i64(op.w + 8 * e), op.w_stride, op.advice)
            _advise(load_i64(op.w1 + 8 * e), op.w1_stride, op.advice)
            _advise(load_i64(op.w2 + 8 * e), op.w2_stride, op.advice)


@compiled
def _is_chosen(op, n_tokens: int, e: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether expert e is among the op.k of any token."""
    for t in range(n_tokens):
        for i in range(op.k):
            if load_i32(op.x + t * op.x_stride + 4 * i) == e:
                return True
    return False


@compiled
def _advise(at: int, n_bytes: int, advice: int) -> None:
    """Give advice of all pages that n bytes lie on."""
    start = at & -PAGE
    operations.madvise(start, at + n_bytes - start, advice)


@compiled
def gather(op, first: int, last: int) -> None:  # type: ignore[no-untyped-def]
    """y[p] = x of the pair's token, op.k numbers of four bytes, for pairs first..last-1."""
    tokens = pair_tokens(op.groups, op.n_rows)
    for p in range(first, last):
        elementwise.copy(op.x + load_i64(tokens + 8 * p) * op.x_stride, op.k, op.y + p * op.y_stride)


@compiled
def _take(op, own, i: int) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """Fill in `own` for the i-th expert that has pairs; its number, and how many pairs."""
    entry = op.groups + GROUP_HEAD + GROUP_ENTRY * i
    e, start = load_i64(entry), load_i64(entry + 8)
    own.w = load_i64(op.w + 8 * e)
    own.x = op.x + start * op.x_stride
    own.y = op.y + start * op.y_stride
    own.z = op.z + start * op.z_stride
    return e, load_i64(entry + 16)


@compiled
def expert_rows(op, own, first: int, last: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[p, r] = w_e[r] . x[p] + bias_e[r] of every pair, rows first..last-1 of its expert e.

    Args:
        op: w: addresses of the experts' matrices; z: of their biases, [n_expert, n_rows], or 0.
        own: a record like op.
    """
    for i in range(load_i64(op.groups)):
        e, n = _take(op, own, i)
        tiles.mul_mat(own, first, last, n, own.x, own.y, own.y_stride, scratch)
        if op.z != 0:
            bias = op.z + 4 * (e * op.n_rows + first)
            for p in range(n):
                y = own.y + p * own.y_stride + 4 * first
                elementwise.add(y, bias, last - first, y)


@compiled
def expert_listed_rows(op, own, first: int, last: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[p, r] = w_e[r] . x[p] where bit r of expert e is set, else 0, as GATE_ROWS."""
    for i in range(load_i64(op.groups)):
        e, n = _take(op, own, i)
        own.z, own.z_stride = op.z + e * op.z_stride, 0
        ffn_batch.wanted_rows(own, first, last, n, scratch, False)


@compiled
def expert_up_rows(op, own, first: int, last: int, scratch: int) -> int:  # type: ignore[no-untyped-def]
    """y[p, r] = z[p, r] (w_e[r] . x[p]) where z[p, r] is wanted, else 0, as UP_ROWS; how many."""
    live = 0
    for i in range(load_i64(op.groups)):
        _, n = _take(op, own, i)
        live += ffn_batch.wanted_rows(own, first, last, n, scratch, True)
    return live


@compiled
def expert_threshold(op, first: int, last: int, n_past: int) -> None:  # type: ignore[no-untyped-def]
    """y[p, r] = act(x[p, r]) of every pair where it matters, rows first..last-1, as THRESHOLD; else 0."""
    tokens = pair_tokens(op.groups, op.k)
    for i in range(load_i64(op.groups)):
        entry = op.groups + GROUP_HEAD + GROUP_ENTRY * i
        e, start = load_i64(entry), load_i64(entry + 8)
        for p in range(start, start + load_i64(entry + 16)):
            least = op.least + 4 * (e * op.n_rows + first)
            t = load_i64(tokens + 8 * p)
            position = n_past + t
            if op.apart:
                position = load_i64(op.apart + 8 * (N_PARAMETERS * t + N_PAST))
            if position < EXACT_POSITIONS:
                least = 0
            x, y = op.x + p * op.x_stride + 4 * first, op.y + p * op.y_stride + 4 * first
            elementwise.keep_large(x, least, last - first, op.activation, y)


@compiled
def expert_pieces(op, own, first: int, last: int, is_exact: bool, scratch: int) -> int:  # type: ignore[no-untyped-def]
    """Pieces first..last-1 of all active experts' FFNs of one token, as `ffn.ffn_pieces`; how many rows fire.

    Args:
        is_exact: whether all rows matter, whatever `least` says.
    """
    live = 0
    for i in range(first // op.n_parts, min((last - 1) // op.n_parts + 1, load_i64(op.groups))):
        e, _ = _take(op, own, i)
        own.w1, own.w2 = load_i64(op.w1 + 8 * e), load_i64(op.w2 + 8 * e)
        own.x, own.z, own.chunks = op.x, op.z, op.n_parts
        if op.listed:
            own.n_listed = op.listed + 8 * e * (op.n_rows + 1)
            own.listed = own.n_listed + 8
        own.scratch = op.scratch + i * op.n_parts * op.scratch_stride
        begin, end = max(first - i * op.n_parts, 0), min(last - i * op.n_parts, op.n_parts)
        least = 0 if is_exact or op.least == 0 else op.least + 4 * e * op.n_rows
        _, fires = ffn.ffn_pieces(own, least, begin, end, scratch)
        live += fires
    return live


@compiled
def expert_down(op, own, first: int, last: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """y[p, first:last] = sum_r x[p, r] w_e[r, first:last] of every pair, as `ffn_down.down_rows`."""
    for i in range(load_i64(op.groups)):
        _, n = _take(op, own, i)
        ffn_down.down_rows(own, first, last, n, scratch)


@compiled
def expert_reduce(op, first: int, last: int) -> None:  # type: ignore[no-untyped-def]
    """y[p, first:last] = the sum of an expert's pieces, in order."""
    for p in range(n_pairs(op.groups)):
        x = op.x + p * op.n_parts * op.x_stride
        elementwise.reduce_rows(x, op.x_stride, op.n_parts, first, last, op.y + p * op.y_stride)


@compiled
def expert_sum(op, t: int, first: int, last: int) -> None:  # type: ignore[no-untyped-def]
    """y[t] = the sum over the token's experts, in the order of their numbers, of weight times their pair's x.

    Args:
        op: x: vectors of the pairs; z: what `top_k` chose, of op.n_used experts; op.pairs: the pairs of each choice.
        first, last: numbers of the vectors, first a multiple of 16.
    """
    y, weights = op.y + t * op.y_stride, op.z + t * op.z_stride + 4 * op.n_used
    elementwise.clear(y + 4 * first, last - first)
    for i in range(op.n_used):
        pair = load_i64(op.pairs + 8 * (t * op.n_used + i))
        if pair < 0:
            continue
        x, weight = op.x + pair * op.x_stride, operations.splat16(load_f32(weights + 4 * i))
        whole = 4 * (first + ((last - first) & ~15))
        for at in range(4 * first, whole, 64):
            operations.store16(
                y + at, operations.fma16(weight, operations.load16(x + at), operations.load16(y + at))
            )
        for at in range(whole, 4 * last, 4):
            v = operations.fma16(
                weight, operations.splat16(load_f32(x + at)), operations.splat16(load_f32(y + at))
            )
            store_f32(y + at, operations.first16(v))
