"""Op records: what a planned graph is lowered to, and what the thread team walks.

A record holds everything that an op needs, as addresses and sizes; what changes from run to run lies
in the run parameters. `chunks` says into how many parts the work is cut. The cut depends on the op and
the number of tokens alone, never on the threads, so neither do the bits.

Each op is one entry below: what it reads -> what it writes (t: token, r: row), and the fields that only some ops
have. A stride of 0 gives every token the same vector, such as a bias.

Tokens of one batch may belong to sequences of their own, each with its positions and its caches: a record of what
depends on these has the address `apart` of the run parameters of each token's sequence, one behind the other.

Ops of a sparse FFN add the neurons that they list and those that fire to their chunk's two cells at
`counts`, if that is not 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.formats import ACTIVATIONS, GATINGS

_own_fields: list[tuple[str, ...]] = []


def _op(*own: str) -> int:
    """The next code, of an op with these fields of its own."""
    _own_fields.append(own)
    return len(_own_fields) - 1


EMBED = _op()
"""w [n_vocab, k], token ids -> y[t, k] = w[id[t]]"""
POSITIONS = _op("first")
"""w [n_positions, k] -> y[t, k] = w[position of t + first]"""
RMS_NORM = _op("eps")
"""x[t, k], w [k] float32 -> y[t, k]; n_rows vectors of k numbers a token"""
LAYER_NORM = _op("eps")
"""x[t, k], w and w1 [k] float32 -> y[t, k]"""
PACK = _op("groups")
"""x[t, k] -> y[t] = x packed for block types; with groups pairs take the place of tokens"""
PACK_ROUNDED = _op()
"""x[t, k] int8, z[t, k / 32] float32 scales -> y[t] = the same packed as they are"""
MAT_VEC = _op()
"""w [n_rows, k], x -> y[r] = w[r] . x, one token"""
MUL_MAT = _op()
"""w [n_rows, k], x[t] -> y[t, r] = w[r] . x[t]"""
LOGITS = _op()
"""w [n_rows, k], x[t] -> logits of tokens from LOGITS_FROM on"""
ROPE = _op("n_head", "head_dim", "n_pairs", "interleaved")
"""x[t, n_head, head_dim], table w of n_pairs, interleaved or halves -> y[t, n_head, head_dim]"""
KV_STORE = _op("n_head_kv", "head_dim", "n_positions")
"""x = k, z = v [t, n_head_kv, head_dim] -> caches w = k, w1 = v: w_stride bytes a block of positions, w1_stride a
head; position p lies at p modulo n_positions"""
ATTENTION = _op("n_head", "n_head_kv", "head_dim", "n_positions", "scale")
"""x = q [t, n_head, head_dim], caches w, w1 of n_head_kv heads, strides likewise, k = positions seen or 0 = all,
z = sinks float32 [n_head], scores without a value, or 0 -> y[t, n_head, head_dim], or scratch: its parts' sums; with
apart n_rows chunks a token, whose parts' sums lie at multiples of scratch_stride"""
ATTENTION_JOIN = _op("n_head", "n_head_kv", "head_dim", "n_positions", "scale")
"""the same, and scratch -> y[t, n_head, head_dim] from the parts' sums"""
ADD = _op()
"""x, z [t, k] -> y[t, k] = x + z"""
GATED = _op("activation")
"""w gate, w1 up, x, z -> y[r] = act(w[r] . x) (w1[r] . z), one token"""
ACT_MUL = _op("activation", "groups")
"""x, z [t, k] -> y[t, k] = act(x) z; with groups pairs take the place of tokens"""
SPARSE_FFN = _op("listed", "n_listed", "skip", "activation", "least")
"""w gate, w1 up, w2 down_t, x, z -> scratch[chunk, n_embd], one token, a piece of the neurons a chunk

listed: rows, ascending, their number at n_listed, or 0 = all. skip: neurons without a positive gate. Without a gate
w1 is 0, w up and z its bias or 0. With silu or gelu neurons with |act(gate)| below their number at `least` are left
out, from position EXACT_POSITIONS on."""
REDUCE = _op("n_parts")
"""x = n_parts vectors of stride x_stride -> y[k], added in order"""
MASK = _op("listed", "n_listed", "threshold")
"""x[n_rows] predictor outputs of one token -> bits y, and the listed rows, their number at n_listed"""
MASK_ROWS = _op("threshold")
"""w [n_rows, k], x[t] -> bits y[t]: of the rows whose w[r] . x[t] is not below the threshold"""
LIST_ROWS = _op("listed", "n_listed")
"""bits z [n_rows], bits x or 0, one token -> listed, n_listed: rows whose bits both have"""
AND_BITS = _op()
"""bits z[t] and x [n_rows] -> bits y[t] = z & x"""
GATE_ROWS = _op()
"""w, x[t], bits z[t] -> y[t, r] = w[r] . x[t] where the bit is set"""
UP_ROWS = _op("all_listed", "activation")
"""w, x[t], gates z[t, r] -> y[t, r] = z (w[r] . x[t]) where z > 0, or what THRESHOLD left of it; all_listed: every
gate was"""
FIRE_ROWS = _op("all_listed")
"""x[t, n_rows], bias w or 0, bits z[t] or 0 -> y[t, r] = max(x + w, 0) where the bit is set; all_listed: every row
was"""
THRESHOLD = _op("activation", "least")
"""x[t, n_rows], least [n_rows] -> y[t, r] = act(x) where |act(x)| is not below it or t is at one of the first
EXACT_POSITIONS positions, else 0; silu or gelu"""
DOWN_ROWS = _op("n_parts")
"""w [n_rows, k], x[t, n_rows] -> y[t, k] = sum_r x[t, r] w[r] in n_parts, zeros skipped"""
RELU = _op()
"""x[t, k] -> y[t, k] = max(x, 0)"""
GELU = _op()
"""x[t, k] -> y[t, k] = gelu(x)"""
KEEP_SOME = _op()
"""x[k], one token: 1 everywhere where none is positive"""
SPARSE_LOGITS = _op()
"""w [n_rows, k], x, z [n_rows], one token -> its logits where z is positive, -infinity elsewhere"""
SCALE = _op("factor")
"""x[t, k] -> y[t, k] = factor x"""
MUL_SIGMOID = _op()
"""x[t, k], z[t, 1] -> y[t, k] = x sigmoid(z)"""
TOP_K = _op("gating", "normed", "weight_scale")
"""x[t, n_rows] logits -> y[t] = k experts' int32 numbers, ascending, and then their float32 weights"""
GROUP = _op("listed", "n_listed")
"""x[t] what TOP_K chose, w [n_rows] addresses of experts' matrices, 0 where not here -> y = groups: pairs (token,
expert) in the order of their experts; z[t, k] = the pair of each choice, or -1. A pair counts as n_listed neurons, or
as its expert's of int64 [n_rows] at `listed`."""
GATHER = _op("groups")
"""x[t, k] of 4 bytes -> y[p, k] = x of the pair's token, of n_rows experts"""
EXPERT_ROWS = _op("groups")
"""w addresses of experts' matrices, x[p], biases z [n_expert, n_rows] or 0 -> y[p, r] = w_e[r] . x[p] + z_e[r]"""
EXPERT_LISTED = _op("groups")
"""w addresses, x[p], bits z [n_expert, z_stride] -> y[p, r] = w_e[r] . x[p] where the expert's bit is set, else 0"""
EXPERT_UP = _op("groups", "activation")
"""w addresses, x[p], gates z[p, r] -> y[p, r] = z (w_e[r] . x[p]) where z > 0"""
EXPERT_PIECES = _op("groups", "n_parts", "skip", "activation", "listed", "n_listed", "least")
"""addresses w of gates, w1 of ups, w2 of transposed downs, x, z, one token -> scratch[p n_parts + piece, k], as
SPARSE_FFN of an expert's rows, n_parts pieces an expert; a piece a chunk. listed: int64 [n_expert, n_rows + 1], of each
expert how many rows, and which, ascending; 0 = all"""
EXPERT_DOWN = _op("groups", "n_parts")
"""w addresses of transposed downs, x[p, n_rows] -> y[p, k] = sum_r x[p, r] w_e[r] in n_parts, zeros skipped"""
EXPERT_REDUCE = _op("groups", "n_parts")
"""x[p n_parts + piece, k] -> y[p, k], an expert's pieces added in order"""
EXPERT_THRESHOLD = _op("groups", "activation", "least")
"""x[p, n_rows] of k experts, least [k, n_rows] -> y[p, r], as THRESHOLD"""
EXPERT_SUM = _op("n_used", "pairs")
"""x[p, k], z[t] what TOP_K chose, its pairs -> y[t, k] = sum of weight x[p], experts ascending"""
WILL_NEED = _op("advice")
"""x[t] what TOP_K chose, k experts, addresses w, w1, w2 [n_rows] of experts' matrices of w_stride, w1_stride, w2_stride
bytes, w 0 where not here -> the system hears `advice` of the pages of those that some token chose"""
TO_PLANES = _op("listed", "n_parts")
"""w rows of a file, those that int32 [n_rows] at `listed` name, or 0 = the first n_rows -> y, n_parts planes, as the
entries at x say (see `to_planes.py`); k blocks a row, z_stride bytes a block"""

RELU_ACTIVATION, SILU_ACTIVATION, GELU_ACTIVATION = (ACTIVATIONS[name] for name in ("relu", "silu", "gelu"))
RELU_BOTH_ACTIVATION, SWIGLU_OAI_ACTIVATION = ACTIVATIONS["relu_both"], ACTIVATIONS["swiglu_oai"]
SIGMOID_GATING, SOFTMAX_CHOSEN_GATING = GATINGS["sigmoid"], GATINGS["softmax_chosen"]

# run parameters, int64 each; KV_OFFSET is what the caches of the tokens' sequence lie behind those of the first
N_TOKENS, N_PAST, TOKEN_IDS, LOGITS_ADDRESS, LOGITS_FROM, KV_OFFSET = range(6)
N_PARAMETERS = 8

# The first cache line holds the two cells that threads meet at; the rest is only read.
_CELLS = ["claim", "done", *(f"_cell{i}" for i in range(6))]
_FIELDS = [
    *("code", "chunks", "apart"),
    *("w", "w_type", "w_stride", "w1", "w1_type", "w1_stride", "w2", "w2_type", "w2_stride"),
    *("n_rows", "k", "x", "x_stride", "z", "z_stride", "y", "y_stride"),
    *("scratch", "scratch_stride", "counts"),
]
_FLOATS = {"eps", "factor", "scale", "threshold", "weight_scale"}
_OWN = list(dict.fromkeys(name for own in _own_fields for name in own))
_PADDING = [f"_pad{i}" for i in range(-(len(_FIELDS) + len(_OWN)) % 8)]
OP = np.dtype([(name, "f8" if name in _FLOATS else "i8") for name in [*_CELLS, *_FIELDS, *_OWN, *_PADDING]])

THREAD_SCRATCH_BYTES = (
    2 << 20
)  # each thread's own memory for row lists, panels and tiles; resident as it is used
ROWS_ALIGNED = 32  # chunks of output rows start on cache lines of float32, and have whole panels
CHUNK_BYTES = 64 << 10  # weight bytes a chunk aims at: some microseconds of work
MAX_CHUNKS = 256
PANEL = 64  # rows that stay in the second-level cache while all tokens of a batch pass
PIECES, MAX_PIECES = 16, 32  # of the neurons of an FFN, whose sums are made apart and then added (see ref.py)
EXPERT_PARTS = 4  # likewise of an expert, of which several share the threads
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

    Raises:
        ValueError: a field that the op has not.
    """
    program = aligned(len(ops) * OP.itemsize).view(OP)
    for record, fields in zip(program, ops, strict=True):
        unknown = fields.keys() - {*_FIELDS, *_own_fields[fields.get("code", EMBED)]}
        if unknown:
            raise ValueError(f"op {fields.get('code', EMBED)} has no field {', '.join(sorted(unknown))}")
        for name, value in fields.items():
            record[name] = value
    return program
