"""How keys and values of a head lie in memory, and how a token's are put there.

Positions come in blocks of 64. A block of keys has a vector of positions for each number of the head, so
that attention adds along the head without ever adding lanes; a block of values has a row for each position:

    F16, F32   keys    [head_dim, 64]                    values  [64, head_dim]
    Q8_0       keys    F16 scales [head_dim / 32, 64],   values  F16 scales [64, head_dim / 32],
                       int8 [head_dim, 64]                       int8 [64, head_dim]

with head_dim rounded up to whole vectors of 16; the numbers added are 0 in values and unused in keys. Q8_0
rounds as `ref.quantise` does, with scales kept in F16, and takes heads of whole blocks of 32.
"""

from hotcold.kernels.cpu import operations, rows, sizes
from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.operations import load16, load_f32, store_f32
from hotcold.kernels.formats import HOST_KV_POSITIONS

BLOCK = HOST_KV_POSITIONS
QUANTISED = 32  # numbers of a Q8_0 block


padded = compiled(sizes.padded)


@compiled
def store_head(
    kv_type: int, k: int, v: int, head_dim: int, position: int, keys: int, values: int, block_bytes: int
) -> None:
    """One token's key and value, head_dim float32 each, into its head's memory."""
    block, lane = position // BLOCK * block_bytes, position % BLOCK
    if kv_type == rows.Q8_0_ID:
        n = head_dim // QUANTISED
        for i in range(n):
            scale = keys + block + 2 * (BLOCK * i + lane)
            to = keys + block + 2 * BLOCK * n + BLOCK * QUANTISED * i + lane
            _store_quantised(k + 128 * i, scale, to, BLOCK)
            scale = values + block + 2 * (n * lane + i)
            to = values + block + 2 * BLOCK * n + head_dim * lane + QUANTISED * i
            _store_quantised(v + 128 * i, scale, to, 1)
        return
    size = rows.row_bytes_of_float(kv_type)
    _store_numbers(kv_type, k, head_dim, keys + block + size * lane, size * BLOCK)
    row = values + block + size * lane * padded(head_dim)
    if head_dim % 16:
        operations.store16_half(row + size * (head_dim & ~15), operations.zero())
        operations.store16_half(row + size * padded(head_dim) - 32, operations.zero())
    _store_numbers(kv_type, v, head_dim, row, size)


@compiled
def _store_numbers(kv_type: int, x: int, n: int, to: int, step: int) -> None:
    """n float32 as F16 or F32 numbers, `step` bytes from one to the next."""
    whole = n & ~15
    for i in range(0, whole, 16):
        if kv_type == rows.F16_ID:
            operations.scatter16_half(to + i * step, step, load16(x + 4 * i))
        else:
            operations.scatter16(to + i * step, step, load16(x + 4 * i))
    for i in range(whole, n):
        if kv_type == rows.F16_ID:
            operations.store_half(to + i * step, load_f32(x + 4 * i))
        else:
            store_f32(to + i * step, load_f32(x + 4 * i))


@compiled
def _store_quantised(x: int, scale: int, to: int, step: int) -> None:
    """32 float32 as one block: its scale, and its bytes `step` from one to the next."""
    x0, x1 = load16(x), load16(x + 64)
    d = operations.to_f32(operations.largest_magnitude16(x0, x1) / 127.0)
    inverse = operations.to_f32(0.0)
    if d != 0.0:
        inverse = operations.to_f32(1.0 / d)
    operations.store_half(scale, d)
    operations.scatter16_bytes(to, step, operations.mul16(x0, operations.splat16(inverse)))
    operations.scatter16_bytes(to + 16 * step, step, operations.mul16(x1, operations.splat16(inverse)))
