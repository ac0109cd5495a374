"""The kernel of each op of `program.py`: what a thread does when it has claimed some of the op's chunks."""

from collections.abc import Callable
from typing import Any

from hotcold.kernels.cpu import (
    attention,
    elementwise,
    experts,
    ffn,
    ffn_batch,
    ffn_down,
    kv_cache,
    operations,
    pack,
    program,
    row_lists,
    rows,
    tiles,
    to_planes,
)
from hotcold.kernels.cpu.compiled import compiled, op_kernel, record
from hotcold.kernels.cpu.operations import load_f32, load_i64, store_i64
from hotcold.kernels.cpu.program import (
    KV_OFFSET,
    LOGITS_ADDRESS,
    LOGITS_FROM,
    N_PARAMETERS,
    N_PAST,
    N_TOKENS,
    ROWS_ALIGNED,
    THREAD_SCRATCH_BYTES,
    TOKEN_IDS,
)
from hotcold.kernels.cpu.row_lists import WORD
from hotcold.kernels.formats import EXACT_POSITIONS


@compiled
def _cut(n: int, c: int, chunks: int, unit: int) -> int:
    """Where chunk c of n numbers begins, in whole units."""
    return min((n + unit - 1) // unit * c // chunks * unit, n)


@compiled
def _count(op, c: int, listed: int, live: int) -> None:  # type: ignore[no-untyped-def]
    """Add to chunk c's own cells, so that no two threads write the same."""
    if op.counts == 0:
        return
    at = op.counts + 16 * c
    store_i64(at, load_i64(at) + listed)
    store_i64(at + 8, load_i64(at + 8) + live)


RECORD_BYTES = program.OP.itemsize


# ---- ops whose output rows are shared out ------------------------------------------


@compiled
def _rows_of(op, c: int, n: int) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """The rows of n chunks from c on, which are one run."""
    return _cut(op.n_rows, c, op.chunks, ROWS_ALIGNED), _cut(op.n_rows, c + n, op.chunks, ROWS_ALIGNED)


@compiled
def _words_of(op, c: int, n: int) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """The same in whole words of bits."""
    return _cut(op.n_rows, c, op.chunks, WORD), _cut(op.n_rows, c + n, op.chunks, WORD)


@op_kernel(program.MAT_VEC)
def mat_vec(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _rows_of(op, c, n)
    w, y = op.w + first * op.w_stride, op.y + 4 * first
    rows.dot_rows(op.w_type, w, op.w_stride, last - first, op.x, op.k, rows.AHEAD, y)


@op_kernel(program.MUL_MAT, program.LOGITS)
def mul_mat(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _rows_of(op, c, n)
    start, y = 0, op.y
    if op.code == program.LOGITS:
        start, y = load_i64(run + 8 * LOGITS_FROM), load_i64(run + 8 * LOGITS_ADDRESS)
        if y == 0:
            return
    n_tokens, x = load_i64(run + 8 * N_TOKENS) - start, op.x + start * op.x_stride
    tiles.mul_mat(op, first, last, n_tokens, x, y, op.y_stride, scratch)


@op_kernel(program.MASK_ROWS)
def mask_rows(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _words_of(op, c, n)
    ffn_batch.mask_rows(op, first, last, load_i64(run + 8 * N_TOKENS), scratch)


@op_kernel(program.KEEP_SOME)
def keep_some(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    elementwise.keep_some(op.x, op.k)


@op_kernel(program.SPARSE_LOGITS)
def sparse_logits(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op, y = record(at), load_i64(run + 8 * LOGITS_ADDRESS)
    if y != 0:
        first, last = _rows_of(op, c, n)
        rows.positive_rows(op.w_type, op.w, op.w_stride, first, last, op.x, op.k, op.z, y)


@op_kernel(program.GATED)
def gated(at: int, c: int, n: int, run: int, scratch: int) -> None:
    # gates lie in y, ups in this op's scratch, until the chunk is complete
    op = record(at)
    first, last = _rows_of(op, c, n)
    w, y = op.w + first * op.w_stride, op.y + 4 * first
    rows.dot_rows(op.w_type, w, op.w_stride, last - first, op.x, op.k, rows.AHEAD, y)
    w, up = op.w1 + first * op.w1_stride, op.scratch + 4 * first
    rows.dot_rows(op.w1_type, w, op.w1_stride, last - first, op.z, op.k, rows.AHEAD, up)
    elementwise.act_mul(y, up, last - first, op.activation, y)


@op_kernel(program.GATE_ROWS, program.UP_ROWS)
def wanted_rows(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op, n_tokens = record(at), load_i64(run + 8 * N_TOKENS)
    first, last = _words_of(op, c, n)
    times_gate = op.code == program.UP_ROWS
    n_wanted = ffn_batch.wanted_rows(op, first, last, n_tokens, scratch, times_gate)
    if times_gate:
        _count(op, c, (last - first) * n_tokens * op.all_listed, n_wanted)
    else:
        _count(op, c, n_wanted, 0)


@op_kernel(program.FIRE_ROWS)
def fire_rows(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op, n_tokens = record(at), load_i64(run + 8 * N_TOKENS)
    first, last = _rows_of(op, c, n)
    live = ffn_batch.fire_rows(op, first, last, n_tokens)
    _count(op, c, (last - first) * n_tokens * op.all_listed, live)


@op_kernel(program.TO_PLANES)
def planes(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    to_planes.repack(op, _cut(op.n_rows, c, op.chunks, 1), _cut(op.n_rows, c + n, op.chunks, 1))


# ---- ops that are cut in other ways ------------------------------------------------


@compiled
def _own_record(at: int, scratch: int) -> int:
    """The address of the thread's own copy of a record."""
    own = scratch + THREAD_SCRATCH_BYTES
    for word in range(0, RECORD_BYTES, 8):
        store_i64(own + word, load_i64(at + word))
    return own


@compiled
def _own_run(op, token: int) -> int:  # type: ignore[no-untyped-def]
    """Address of the run parameters of a token that has a sequence of its own."""
    return op.apart + 8 * N_PARAMETERS * token


@compiled
def _take_token(op, own, token: int) -> None:  # type: ignore[no-untyped-def]
    """Let a copy of an attention's record be about one token that has a sequence of its own."""
    own.chunks = op.n_rows
    own.x, own.y = op.x + token * op.x_stride, op.y + token * op.y_stride
    own.scratch = op.scratch + token * op.scratch_stride


@op_kernel(program.ATTENTION)
def attend(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    if op.apart == 0:
        for i in range(c, c + n):
            attention.attend(op, i, run, run, scratch)
        return
    own = record(_own_record(at, scratch))
    for i in range(c, c + n):
        token = i // op.n_rows
        _take_token(op, own, token)
        following = min(token + 1, op.chunks // op.n_rows - 1)
        attention.attend(own, i % op.n_rows, _own_run(op, token), _own_run(op, following), scratch)


@op_kernel(program.ATTENTION_JOIN)
def join_parts(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    if op.apart == 0:
        for i in range(c, c + n):
            attention.join_parts(op, i, run, scratch)
        return
    own = record(_own_record(at, scratch))
    for i in range(c, c + n):
        token = i // op.n_rows
        _take_token(op, own, token)
        attention.join_parts(own, i % op.n_rows, _own_run(op, token), scratch)


@op_kernel(program.SPARSE_FFN)
def sparse_ffn(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    least = op.least if load_i64(run + 8 * N_PAST) >= EXACT_POSITIONS else 0
    listed, live = ffn.ffn_pieces(op, least, c, c + n, scratch)
    _count(op, c, listed, live)


@op_kernel(program.REDUCE)
def reduce(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _cut(op.k, c, op.chunks, ROWS_ALIGNED), _cut(op.k, c + n, op.chunks, ROWS_ALIGNED)
    elementwise.reduce_rows(op.x, op.x_stride, op.n_parts, first, last, op.y)


@op_kernel(program.DOWN_ROWS)
def down_rows(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    unit = rows.column_unit(op.w_type)
    first, last = _cut(op.k, c, op.chunks, unit), _cut(op.k, c + n, op.chunks, unit)
    ffn_down.down_rows(op, first, last, load_i64(run + 8 * N_TOKENS), scratch)


# ---- experts ------------------------------------------------------------------------


@op_kernel(program.GROUP)
def group(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    _count(op, 0, experts.group(op, load_i64(run + 8 * N_TOKENS), scratch), 0)


@op_kernel(program.WILL_NEED)
def will_need(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _cut(op.n_rows, c, op.chunks, 1), _cut(op.n_rows, c + n, op.chunks, 1)
    experts.will_need(op, load_i64(run + 8 * N_TOKENS), first, last)


@op_kernel(program.GATHER)
def gather(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    n_pairs = experts.n_pairs(op.groups)
    experts.gather(op, n_pairs * c // op.chunks, n_pairs * (c + n) // op.chunks)


@op_kernel(program.EXPERT_ROWS)
def expert_rows(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _rows_of(op, c, n)
    experts.expert_rows(op, record(_own_record(at, scratch)), first, last, scratch)


@op_kernel(program.EXPERT_LISTED)
def expert_listed(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _rows_of(op, c, n)
    experts.expert_listed_rows(op, record(_own_record(at, scratch)), first, last, scratch)


@op_kernel(program.EXPERT_UP)
def expert_up(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _rows_of(op, c, n)
    live = experts.expert_up_rows(op, record(_own_record(at, scratch)), first, last, scratch)
    _count(op, c, 0, live)


@op_kernel(program.EXPERT_PIECES)
def expert_pieces(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    is_exact = load_i64(run + 8 * N_PAST) < EXACT_POSITIONS
    live = experts.expert_pieces(op, record(_own_record(at, scratch)), c, c + n, is_exact, scratch)
    _count(op, c, 0, live)


@op_kernel(program.EXPERT_THRESHOLD)
def expert_threshold(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _rows_of(op, c, n)
    experts.expert_threshold(op, first, last, load_i64(run + 8 * N_PAST))


@op_kernel(program.EXPERT_DOWN)
def expert_down(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    unit = rows.column_unit(op.w_type)
    first, last = _cut(op.k, c, op.chunks, unit), _cut(op.k, c + n, op.chunks, unit)
    experts.expert_down(op, record(_own_record(at, scratch)), first, last, scratch)


@op_kernel(program.EXPERT_REDUCE)
def expert_reduce(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _cut(op.k, c, op.chunks, ROWS_ALIGNED), _cut(op.k, c + n, op.chunks, ROWS_ALIGNED)
    experts.expert_reduce(op, first, last)


@op_kernel(program.EXPERT_SUM)
def expert_sum(at: int, c: int, n: int, run: int, scratch: int) -> None:
    op = record(at)
    first, last = _cut(op.k, c, op.chunks, ROWS_ALIGNED), _cut(op.k, c + n, op.chunks, ROWS_ALIGNED)
    for t in range(load_i64(run + 8 * N_TOKENS)):
        experts.expert_sum(op, t, first, last)


# ---- ops whose tokens are shared out ------------------------------------------------


@compiled
def _n_tokens(op, run: int) -> int:  # type: ignore[no-untyped-def]
    """How many tokens there are, or pairs of tokens and experts that take their place."""
    return load_i64(run + 8 * N_TOKENS) if op.groups == 0 else experts.n_pairs(op.groups)


def _token_kernel(code: int) -> Callable[[Callable[..., None]], Any]:
    """A decorator for an op of one token at a time: function(op, t, x, y, z, run), with the token's addresses.

    Where tokens have sequences of their own, t is 0 and run the token's own.
    """

    def wrap(function: Callable[..., None]) -> Any:
        of_token = compiled(function)

        def of_chunks(at: int, c: int, n: int, run: int, scratch: int) -> None:
            op = record(at)
            n_tokens = _n_tokens(op, run)
            for t in range(n_tokens * c // op.chunks, n_tokens * (c + n) // op.chunks):
                x, y, z = op.x + t * op.x_stride, op.y + t * op.y_stride, op.z + t * op.z_stride
                own, i = (run, t) if op.apart == 0 else (_own_run(op, t), 0)
                of_token(op, i, x, y, z, own)

        of_chunks.__name__ = function.__name__
        return op_kernel(code)(of_chunks)

    return wrap


@_token_kernel(program.EMBED)
def embed(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    token = operations.load_i32(load_i64(run + 8 * TOKEN_IDS) + 4 * t)
    rows.widen_row(op.w_type, op.w + token * op.w_stride, op.k, y)


@_token_kernel(program.POSITIONS)
def positions(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    position = load_i64(run + 8 * N_PAST) + t + op.first
    rows.widen_row(op.w_type, op.w + position * op.w_stride, op.k, y)


@_token_kernel(program.RMS_NORM)
def rms_norm(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    for at in range(0, 4 * op.n_rows * op.k, 4 * op.k):
        elementwise.rms_norm(x + at, op.w, op.k, op.eps, y + at)


@_token_kernel(program.LAYER_NORM)
def layer_norm(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    elementwise.layer_norm(x, op.w, op.w1, op.k, op.eps, y)


@_token_kernel(program.PACK)
def pack_row(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    pack.pack_row(x, op.k, y)


@_token_kernel(program.PACK_ROUNDED)
def pack_rounded_row(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    pack.pack_rounded_row(x, z, op.k, y)


@_token_kernel(program.ROPE)
def rope(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    table = op.w + (load_i64(run + 8 * N_PAST) + t) * op.w_stride
    elementwise.rope(x, table, op.n_head, op.head_dim, op.n_pairs, op.interleaved, y)


@_token_kernel(program.KV_STORE)
def kv_store(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    position = (load_i64(run + 8 * N_PAST) + t) % op.n_positions
    for head in range(op.n_head_kv):
        k, v = x + 4 * head * op.head_dim, z + 4 * head * op.head_dim
        to = load_i64(run + 8 * KV_OFFSET) + head * op.w1_stride
        keys, values = op.w + to, op.w1 + to
        kv_cache.store_head(op.w_type, k, v, op.head_dim, position, keys, values, op.w_stride)


@_token_kernel(program.ADD)
def add(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    elementwise.add(x, z, op.k, y)


@_token_kernel(program.ACT_MUL)
def act_mul(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    elementwise.act_mul(x, z, op.k, op.activation, y)


@_token_kernel(program.RELU)
def relu(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    elementwise.relu(x, op.k, y)


@_token_kernel(program.GELU)
def gelu(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    elementwise.gelu(x, op.k, y)


@_token_kernel(program.THRESHOLD)
def threshold(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    least = op.least if load_i64(run + 8 * N_PAST) + t >= EXACT_POSITIONS else 0
    elementwise.keep_large(x, least, op.n_rows, op.activation, y)


@_token_kernel(program.MASK)
def mask(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    n = row_lists.mask_token(x, op.n_rows, op.threshold, y, op.listed)
    if op.n_listed:
        store_i64(op.n_listed, n)


@_token_kernel(program.LIST_ROWS)
def list_rows(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    store_i64(op.n_listed, row_lists.list_bits(z, op.x, op.n_rows, op.listed))


@_token_kernel(program.AND_BITS)
def and_bits(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    row_lists.and_bits(z, op.x, op.n_rows, y)


@_token_kernel(program.SCALE)
def scale(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    elementwise.scale(x, op.k, op.factor, y)


@_token_kernel(program.MUL_SIGMOID)
def mul_sigmoid(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    elementwise.mul_sigmoid(x, load_f32(z), op.k, y)


@_token_kernel(program.TOP_K)
def top_k(op, t: int, x: int, y: int, z: int, run: int) -> None:  # type: ignore[no-untyped-def]
    experts.top_k(x, op.n_rows, op.k, op.gating, op.normed, op.weight_scale, y)
