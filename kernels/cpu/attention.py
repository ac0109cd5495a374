"""Attention over the KV cache, for one token and for many, with the same bits.

Rows are (token, head of a group): the query heads that read one head of the cache share whatever is loaded
of it. The positions are taken in tiles of 64, in which a lane is a position: scores are sums along the head in
order, the online softmax (Milakov and Gimelshein, 2018) adds the weights lane by lane, and the weighted sum
of values is one chain over the positions in order. Tiles make up parts of 512 positions that start anew and
are joined in order. All of that is laid down in `order_of_sums.attention_in_order`; how many rows share a register
tile, and which thread takes what, changes no bit.

A few tokens are cut by parts, so that long contexts keep all threads busy (`attend`, then `join_parts`);
many by blocks of rows, each of which goes through all of its parts.
"""

from hotcold.kernels.cpu import kv_cache, operations, rows, sizes
from hotcold.kernels.cpu.attention_tiles import (
    LOG2E,
    MOST_DIRECT_ROWS,
    MOST_ROWS,
    P_ROW,
    attention_scores,
    attention_values,
    clear,
    finish,
    join,
    scale,
    soften,
    soften_some,
    widen,
)
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.kv_cache import BLOCK as TILE
from hotcold.kernels.cpu.operations import load16, load_f32, load_i64, store16, store_f32, store_i64
from hotcold.kernels.cpu.program import KV_OFFSET, N_PAST, N_TOKENS, THREAD_SCRATCH_BYTES
from hotcold.kernels.cpu.sizes import MOST_WIDE_ROWS, PART, SPLIT_TOKENS, STATE

MAX_HEAD_DIM = 1024

_DIRECT_ROWS = 8  # more rows share a tile that is widened to float32 once
# bytes from the beginning of what serves a register tile
_FACTORS, _ONES, _WIDE = MOST_ROWS * P_ROW, MOST_ROWS * (P_ROW + 64), MOST_ROWS * (P_ROW + 128)


@compiled
def _rows_at_once(left: int, most: int) -> int:
    """Rows of the next register tile."""
    if left >= most:
        return most
    return 3 if left == 5 else left


_rows_of_block = compiled(sizes.rows_of_block)


@compiled
def _sees(position: int, window: int) -> int:
    """The first position that a token at `position` sees; `window` of them, or all if it is 0."""
    return max(0, position + 1 - window) if window > 0 else 0


@compiled
def _tile(
    kind: int,
    n_rows: int,
    q: int,
    k: int,
    v: int,
    head_dim: int,
    first: int,
    positions: int,
    window: int,
    records: int,
    ahead: int,
    p: int,
) -> None:
    """n_rows rows meet the positions first .. first + 63.

    Args:
        positions: address of the rows' own, int64, ascending. p: weights, factors and ones, see `attend`.
    """
    n_vectors = kv_cache.padded(head_dim) // 16
    record, q_row = STATE + 64 * n_vectors, 64 * n_vectors
    factors, ones = p + _FACTORS, p + _ONES
    start, end = load_i64(positions), load_i64(positions + 8 * (n_rows - 1))
    # what all rows see
    low, high = max(0, _sees(end, window) - first), min(TILE, start + 1 - first)
    sums = records + STATE
    if low == 0 and high == TILE:
        attention_scores(kind, n_rows, q, q_row, k, head_dim, p, ahead)
        for r in range(n_rows):
            store16(factors + 64 * r, soften(p + P_ROW * r, records + record * r))
        attention_values(kind, n_rows, p, v, n_vectors, 0, TILE, sums, record, factors, ahead)
        return
    # what any of them sees
    if end < first or _sees(start, window) >= first + TILE:
        return
    attention_scores(kind, n_rows, q, q_row, k, head_dim, p, ahead)
    # values that not all rows see are added row by row: whatever they are, no other row may meet them
    for r in range(n_rows):
        position = load_i64(positions + 8 * r)
        own_low, own_high = max(0, _sees(position, window) - first), min(TILE, position + 1 - first)
        if own_low >= own_high:
            continue
        weights, own = p + P_ROW * r, records + record * r
        scale(own + STATE, n_vectors, soften_some(weights, own, own_low, own_high))
        until = low if low < high else own_high
        attention_values(kind, 1, weights, v, n_vectors, own_low, until, own + STATE, record, ones, ahead)
    if low >= high:
        return
    attention_values(kind, n_rows, p, v, n_vectors, low, high, sums, record, ones, ahead)
    for r in range(n_rows):
        own_high, own = min(TILE, load_i64(positions + 8 * r) + 1 - first), sums + record * r
        attention_values(kind, 1, p + P_ROW * r, v, n_vectors, high, own_high, own, record, ones, ahead)


@compiled
def _prepare(op, head_kv: int, row: int, n_rows: int, n_past: int, q: int, positions: int) -> None:  # type: ignore[no-untyped-def]
    """The block's positions, and its queries in whole vectors, scaled for powers of two."""
    group, head_dim = op.n_head // op.n_head_kv, op.head_dim
    factor = operations.to_f32(op.scale * LOG2E)
    factors, whole = operations.splat16(factor), head_dim & ~15
    t, g = row // group, row % group
    for r in range(n_rows):
        store_i64(positions + 8 * r, n_past + t)
        x, to = (
            op.x + t * op.x_stride + 4 * (head_kv * group + g) * head_dim,
            q + 4 * kv_cache.padded(head_dim) * r,
        )
        for i in range(0, 4 * whole, 64):
            store16(to + i, operations.mul16(load16(x + i), factors))
        for i in range(4 * whole, 4 * head_dim, 4):
            store_f32(to + i, load_f32(x + i) * factor)
        g += 1
        if g == group:
            t, g = t + 1, 0


@compiled
def _tile_at(op, cache: int, head_kv: int, first: int) -> int:  # type: ignore[no-untyped-def]
    """Bytes from the beginning of the first sequence's caches to a head's tile that holds a position.

    Args:
        cache: bytes from there to this sequence's.
    """
    return cache + head_kv * op.w1_stride + first // TILE % (op.n_positions // TILE) * op.w_stride


@compiled
def _first_tile(op, run: int, head_kv: int) -> int:  # type: ignore[no-untyped-def]
    """The same of the first tile that a sequence's first token sees, by its run parameters."""
    first = _sees(load_i64(run + 8 * N_PAST), op.k)
    return _tile_at(op, load_i64(run + 8 * KV_OFFSET), head_kv, first)


@compiled
def _sum_part(  # type: ignore[no-untyped-def]
    op,
    head_kv: int,
    n_rows: int,
    part: int,
    q: int,
    positions: int,
    records: int,
    spare: int,
    cache: int,
    then: int,
) -> None:
    """Maxima, totals and sums of a block of rows over one part of the positions.

    Args:
        q, positions: of the rows. spare: memory for a register tile, see `attend`, and a widened one.
        cache: bytes from the first sequence's caches to these. then: the tile, as `_tile_at` says, that follows
            the last one that the rows see; asked for meanwhile.
    """
    head_dim, window = op.head_dim, op.k
    n_vectors = kv_cache.padded(head_dim) // 16
    record = STATE + 64 * n_vectors
    for r in range(n_rows):
        clear(records + record * r, n_vectors)
    wide_k = spare + _WIDE
    wide_v = wide_k + 64 * TILE * n_vectors
    widened = op.w_type != rows.F32_ID and n_rows > _DIRECT_ROWS
    kind = rows.F32_ID if widened else op.w_type
    most = MOST_WIDE_ROWS if kind == rows.F32_ID else MOST_DIRECT_ROWS
    start = max(part * PART, _sees(load_i64(positions), window) // TILE * TILE)
    last = load_i64(positions + 8 * (n_rows - 1))
    for first in range(start, min((part + 1) * PART, last + 1), TILE):
        at = _tile_at(op, cache, head_kv, first)
        later = _tile_at(op, cache, head_kv, first + TILE) if first + TILE <= last else then
        k, v, ahead = op.w + at, op.w1 + at, later - at
        if widened:
            widen(op.w_type, True, k, head_dim, wide_k, ahead)
            widen(op.w_type, False, v, head_dim, wide_v, ahead)
            k, v, ahead = wide_k, wide_v, 0
        r = 0
        while r < n_rows:
            n = _rows_at_once(n_rows - r, most)
            own, q_at = records + record * r, q + 64 * n_vectors * r
            _tile(kind, n, q_at, k, v, head_dim, first, positions + 8 * r, window, own, ahead, spare)
            ahead = 0
            r += n


@compiled
def _meets(position: int, window: int, part: int) -> bool:
    """Whether a row sees any position of a part."""
    return part * PART <= position and _sees(position, window) < (part + 1) * PART


@compiled
def _finish_row(op, head_kv: int, row: int, record: int) -> None:  # type: ignore[no-untyped-def]
    """The answer of one row."""
    group, head_dim = op.n_head // op.n_head_kv, op.head_dim
    t, head = row // group, head_kv * group + row % group
    sink = op.z + 4 * head if op.z else 0
    finish(record, head_dim, sink, op.y + t * op.y_stride + 4 * head * head_dim)


@compiled
def _parts(op, n_tokens: int, n_past: int) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """The first part of the positions that any token sees, and how many there are from it on."""
    first = _sees(n_past, op.k) // PART
    return first, (n_past + n_tokens + PART - 1) // PART - first


@compiled
def attend(op, c: int, run: int, next_run: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Chunk c of an ATTENTION op.

    The thread's memory holds the block's queries, positions, totals and sums of one part, then what serves a
    register tile: 8 rows of 64 weights, 8 factors and 8 ones in 16 lanes, keys and values as float32.

    Args:
        op: n_head query heads, n_head_kv of the cache, head_dim, n_positions that the cache holds, whole
            blocks, scale, k window or 0, z address of the sinks float32 [n_head] or 0; x, y; caches w, w1 of
            w_type, with w_stride bytes a block of positions and w1_stride a head; scratch of
            `attention_partial_bytes`.
        run: address of the run parameters. next_run: of the sequence that comes next.
        scratch: address of THREAD_SCRATCH_BYTES.
    """
    n_tokens, n_past = load_i64(run + 8 * N_TOKENS), load_i64(run + 8 * N_PAST)
    n_head_kv, window, cache = op.n_head_kv, op.k, load_i64(run + 8 * KV_OFFSET)
    group = op.n_head // n_head_kv
    n_rows, block = n_tokens * group, _rows_of_block(n_tokens, group, n_head_kv, kv_cache.padded(op.head_dim))
    n_blocks = (n_rows + block - 1) // block
    first_part, n_parts = _parts(op, n_tokens, n_past)
    cut = n_tokens <= SPLIT_TOKENS and n_parts > 1
    items = n_head_kv * n_blocks * (n_parts if cut else 1)
    n_vectors = kv_cache.padded(op.head_dim) // 16
    record = STATE + 64 * n_vectors
    positions = scratch + 64 * n_vectors * block
    totals = positions + 64 * ((block + 7) // 8)
    own = totals + record * block
    spare = own + record * block
    for r in range(MOST_ROWS):
        store16(spare + _ONES + 64 * r, operations.splat16(operations.to_f32(1.0)))
    for item in range(items * c // op.chunks, items * (c + 1) // op.chunks):
        if cut:
            part, rest = item % n_parts, item // n_parts
            row, head_kv = rest % n_blocks * block, rest // n_blocks
        else:
            # the last rows see most, so they go first
            part, row, head_kv = 0, (n_blocks - 1 - item // n_head_kv) * block, item % n_head_kv
        n = min(block, n_rows - row)
        _prepare(op, head_kv, row, n, n_past, scratch, positions)
        head_after = (item + 1) // (n_parts * n_blocks if cut else 1) % n_head_kv
        then = _first_tile(op, run if item + 1 < items else next_run, head_after)
        if cut:
            to = op.scratch + ((head_kv * n_parts + part) * n_rows + row) * record
            _sum_part(op, head_kv, n, first_part + part, scratch, positions, to, spare, cache, then)
            continue
        for r in range(n):
            clear(totals + record * r, n_vectors)
        for part in range(first_part, first_part + n_parts):
            _sum_part(op, head_kv, n, part, scratch, positions, own, spare, cache, then)
            for r in range(n):
                if _meets(load_i64(positions + 8 * r), window, part):
                    join(totals + record * r, own + record * r, n_vectors)
        for r in range(n):
            _finish_row(op, head_kv, row + r, totals + record * r)


@compiled
def join_parts(op, c: int, run: int, scratch: int) -> None:  # type: ignore[no-untyped-def]
    """Chunk c of an ATTENTION_JOIN op, the same record as the ATTENTION before it; often nothing is left."""
    n_tokens, n_past = load_i64(run + 8 * N_TOKENS), load_i64(run + 8 * N_PAST)
    n_head_kv, group = op.n_head_kv, op.n_head // op.n_head_kv
    first_part, n_parts = _parts(op, n_tokens, n_past)
    if n_tokens > SPLIT_TOKENS or n_parts == 1:
        return
    n_rows, n_vectors = n_tokens * group, kv_cache.padded(op.head_dim) // 16
    record = STATE + 64 * n_vectors
    items = n_head_kv * n_rows
    for item in range(items * c // op.chunks, items * (c + 1) // op.chunks):
        head_kv, row = item // n_rows, item % n_rows
        clear(scratch, n_vectors)
        for part in range(n_parts):
            if _meets(n_past + row // group, op.k, first_part + part):
                join(scratch, op.scratch + ((head_kv * n_parts + part) * n_rows + row) * record, n_vectors)
        _finish_row(op, head_kv, row, scratch)


def _scratch_bytes(head_dim: int) -> int:
    """What a chunk needs of its thread's memory at most."""
    n = sizes.padded(head_dim)
    block = min(sizes.BLOCK_ROWS, sizes.BLOCK_NUMBERS // n)
    return block * (4 * n + 8 + 2 * (STATE + 4 * n)) + 64 + _WIDE + 2 * 4 * TILE * n


if max(map(_scratch_bytes, range(1, MAX_HEAD_DIM + 1))) > THREAD_SCRATCH_BYTES:
    raise AssertionError("attention needs more of a thread's memory than there is")
