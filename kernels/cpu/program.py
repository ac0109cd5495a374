"""Op records: what a planned graph is lowered to, and what the thread team walks.

A record holds everything that an op needs, as addresses and sizes; what changes from run to run lies
in the run parameters. `chunks` says into how many parts the work is cut. The cut depends on the op and
the number of tokens alone, never on the threads, so neither do the bits.

    code          reads                                         writes (t: token, r: row)
    EMBED         w [n_vocab, k], token ids                     y[t, k] = w[id[t]]
    POSITIONS     w [n_positions, k], first                     y[t, k] = w[position of t + first]
    RMS_NORM      x[t, n_rows, k], w [k] float32, eps           y[t, n_rows, k], each row by itself
    LAYER_NORM    x[t, k], w and w1 [k] float32, eps            y[t, k]
    PACK          x[t, k]                                       y[t] = x packed for block types
    PACK_ROUNDED  x[t, k] int8, z[t, k / 32] float32 scales     y[t] = the same packed as they are
    MAT_VEC       w [n_rows, k], x                              y[r] = w[r] . x, one token
    MUL_MAT       w [n_rows, k], x[t]                           y[t, r] = w[r] . x[t]
    LOGITS        w [n_rows, k], x[t]                           logits of tokens from LOGITS_FROM on
    ROPE          x[t, n_head, head_dim], table w, n_pairs,     y[t, n_head, head_dim]
                  interleaved, or halves
    KV_STORE      x = k, z = v [t, n_head_kv, head_dim]         caches w = k, w1 = v: w_stride bytes a block
                                                              of positions, w1_stride a head
    ATTENTION     x = q [t, n_head, head_dim], caches w, w1     y[t, n_head, head_dim], or scratch: its
                  of n_head_kv heads, strides likewise, scale,  parts' sums
                  k = positions seen or 0 = all, z = sinks
                  float32 [n_head], scores without a value, or 0
    ATTENTION_JOIN  the same, and scratch                       y[t, n_head, head_dim] from the parts' sums
    ADD           x, z [t, k]                                   y[t, k] = x + z
    GATED         w gate, w1 up, x, z, activation               y[r] = act(w[r] . x) (w1[r] . z)
    ACT_MUL       x, z [t, k], activation                       y[t, k] = act(x) z
    SPARSE_FFN    w gate, w1 up, w2 down_t, x, z; listed rows,  scratch[chunk, n_embd], one token
                  ascending, or 0 = all, their number at
                  n_listed, a piece a chunk; skip neurons
                  without a positive gate; activation; without
                  a gate w1 is 0, w up and z its bias or 0
    REDUCE        x = n_parts vectors of stride x_stride        y[k], added in order
    MASK          x[t, n_rows] predictor outputs, threshold     bits y[t]; listed rows, their number n_listed
    LIST_ROWS     bits z [n_rows], bits x or 0, one token       listed, n_listed: rows whose bits both have
    AND_BITS      bits z[t] and x [n_rows]                      bits y[t] = z & x
    GATE_ROWS     w, x[t], bits z[t]                            y[t, r] = w[r] . x[t] where the bit is set
    UP_ROWS       w, x[t], gates z[t, r], all_listed: every     y[t, r] = z (w[r] . x[t]) where z > 0
                  gate was, activation
    FIRE_ROWS     x[t, n_rows], bias w or 0, bits z[t] or 0,    y[t, r] = max(x + w, 0) where the bit is set
                  all_listed: every row was
    DOWN_ROWS     w [n_rows, k], x[t, n_rows], n_parts          y[t, k] = sum_r x[t, r] w[r], zeros skipped
    RELU          x[t, k]                                       y[t, k] = max(x, 0)
    GELU          x[t, k]                                       y[t, k] = gelu(x)

What only some ops have lies in p0 to p3 and f0: `PARAMETERS` says which. A stride of 0 gives every token
the same vector, such as a bias.

Ops of a sparse FFN add the neurons that they list and those that fire to their chunk's two cells at
`counts`, if that is not 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

(
    EMBED,
    RMS_NORM,
    PACK,
    MAT_VEC,
    MUL_MAT,
    LOGITS,
    ROPE,
    KV_STORE,
    ATTENTION,
    ADD,
    GATED,
    ACT_MUL,
    SPARSE_FFN,
    REDUCE,
    MASK,
    GATE_ROWS,
    UP_ROWS,
    DOWN_ROWS,
    RELU,
    POSITIONS,
    LAYER_NORM,
    FIRE_ROWS,
    GELU,
    PACK_ROUNDED,
    LIST_ROWS,
    AND_BITS,
    ATTENTION_JOIN,
) = range(27)

RELU_ACTIVATION, SILU_ACTIVATION, RELU_BOTH_ACTIVATION = 0, 1, 2  # both: max(x, 0) max(z, 0)

_HEADS = {"n_head": "p0", "n_head_kv": "p1", "head_dim": "p2", "scale": "f0"}
_LISTED = {"listed": "p0", "n_listed": "p1"}
PARAMETERS: dict[int, dict[str, str]] = {
    POSITIONS: {"first": "p0"},
    RMS_NORM: {"eps": "f0"},
    LAYER_NORM: {"eps": "f0"},
    ROPE: {"n_head": "p0", "head_dim": "p1", "n_pairs": "p2", "interleaved": "p3"},
    KV_STORE: {"n_head_kv": "p0", "head_dim": "p1"},
    ATTENTION: _HEADS,
    ATTENTION_JOIN: _HEADS,
    GATED: {"activation": "p0"},
    ACT_MUL: {"activation": "p0"},
    SPARSE_FFN: {**_LISTED, "skip": "p2", "activation": "p3"},
    REDUCE: {"n_parts": "p0"},
    MASK: {**_LISTED, "threshold": "f0"},
    LIST_ROWS: _LISTED,
    UP_ROWS: {"all_listed": "p0", "activation": "p3"},
    FIRE_ROWS: {"all_listed": "p0"},
    DOWN_ROWS: {"n_parts": "p0"},
}
"""The names of what only some ops have, and where it lies in their records."""

# run parameters, int64 each
N_TOKENS, N_PAST, TOKEN_IDS, LOGITS_ADDRESS, LOGITS_FROM = range(5)
N_PARAMETERS = 8

# The first cache line holds the two cells that threads meet at; the rest is only read.
_CELLS = ["claim", "done", *(f"_cell{i}" for i in range(6))]
_FIELDS = [
    *("code", "chunks"),
    *("w", "w_type", "w_stride", "w1", "w1_type", "w1_stride", "w2", "w2_type", "w2_stride"),
    *("n_rows", "k", "x", "x_stride", "z", "z_stride", "y", "y_stride"),
    *("scratch", "scratch_stride", "counts"),
    *("p0", "p1", "p2", "p3"),
]
_PADDING = [f"_pad{i}" for i in range(-(len(_FIELDS) + 1) % 8)]
OP = np.dtype([*((name, "i8") for name in [*_CELLS, *_FIELDS]), ("f0", "f8"), *((n, "i8") for n in _PADDING)])

THREAD_SCRATCH_BYTES = (
    2 << 20
)  # each thread's own memory for row lists, panels and tiles; resident as it is used
ROWS_ALIGNED = 32  # chunks of output rows start on cache lines of float32, and have whole panels
CHUNK_BYTES = 64 << 10  # weight bytes a chunk aims at: some microseconds of work
MAX_CHUNKS = 256
PANEL = 64  # rows that stay in the second-level cache while all tokens of a batch pass
PIECES, MAX_PIECES = 16, 32  # of the neurons of an FFN, whose sums are made apart and then added (see ref.py)
PIECE_BYTES = 1 << 20  # weight bytes a piece aims at


def aligned(n_bytes: int) -> NDArray[np.uint8]:
    """n zero bytes that start on a cache line."""
    raw = np.zeros(n_bytes + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at : at + n_bytes]


def row_chunks(n_rows: int, bytes_a_row: int) -> int:
    """Into how many chunks the rows of a matrix are cut: a pure function of its shape."""
    wanted = n_rows * bytes_a_row // CHUNK_BYTES
    return max(1, min(wanted, MAX_CHUNKS, -(-n_rows // ROWS_ALIGNED)))


def panel_chunks(n_rows: int) -> int:
    """Into how many chunks the rows of a matrix are cut for a batch: as many as there are panels.

    Each chunk reads all inputs of the batch, so chunks of fewer rows would read them too often.
    """
    return max(1, min(n_rows // PANEL, MAX_CHUNKS))


def ffn_pieces(n_bytes: int) -> int:
    """Into how many pieces the neurons of an FFN of n bytes of weights are cut: a pure function of its shape."""
    return max(PIECES, min(n_bytes // PIECE_BYTES, MAX_PIECES))


def assemble(ops: list[dict[str, Any]]) -> NDArray[Any]:
    """Records of dtype OP on a cache line from one dict of fields an op; unnamed fields are 0.

    Args:
        ops: fields by their names in OP, or by those that `PARAMETERS` has for the op.
    """
    program = aligned(len(ops) * OP.itemsize).view(OP)
    for record, fields in zip(program, ops, strict=True):
        names = PARAMETERS.get(fields.get("code", EMBED), {})
        for name, value in fields.items():
            record[names.get(name, name)] = value
    return program
