"""What the plan, the CPU's kernels and the device's kernels must agree on.

It is the sizes and numbers of what both sides hold or exchange:

* inputs and activations: how a quantised weight's input is rounded, and the numbers of the functions
* candidates: of the tokens that may come next
* masks: a bit a neuron
* the KV cache's types, and the table of cosines and sines that turns queries and keys
* sums in parts: into how many a device's kernel cuts its work, and the memory that they take
* what an allocator of device memory adds

Weights have a table of their own, weight_table.py. Neither needs a side, so a run on the CPU alone opens nothing of
`kernels/cuda`.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

Type = GGMLQuantizationType

# Inputs and activations

ACTIVATIONS = {"relu": 0, "silu": 1, "relu_both": 2, "gelu": 3, "swiglu_oai": 4}
"""The functions between up (and gate) and down, by the numbers that kernels take; activations.h has the
same. relu_both is the ReLU of gate and of up, swiglu_oai gpt-oss's rule (see `ref.gated`)."""

EXACT_POSITIONS = 8
"""So many positions of every context run with all neurons where thresholds leave others out; activations.h has the
same. What comes first is what everything behind looks back at."""

GATINGS = {"softmax": 0, "sigmoid": 1, "softmax_chosen": 2}
"""How a router's logits become weights, by the numbers that kernels take (see `ref_experts.top_k`)."""


def chosen_bytes(n_tokens: int, n_used: int) -> int:
    """Bytes of what a router chose: of each token n_used int32 numbers of experts, then their float32 weights."""
    return 8 * n_tokens * n_used


def quantised_bytes(n_tokens: int, n: int) -> int:
    """Bytes of n_tokens inputs of n numbers, as they cross the bus and lie on the device.

    Each is n of int8, then a float32 scale and an int32 sum for each 32 of them.
    """
    return n_tokens * (n + n // 32 * 8)


# Candidates

N_CANDIDATES = 64
"""Of how many tokens, the likeliest ones, a device tells number and logit; candidates.cu has the same."""
CANDIDATE_WORDS = 1 + 2 * N_CANDIDATES
"""Words of 32 bits of that: 1 where any logit is not finite, else 0; int32 numbers; float32 logits."""


def candidate_parts_bytes(n_vocab: int) -> int:
    """What the candidates of each 2048 logits take before they are put together: uint64 keys, and one word."""
    return 8 * (N_CANDIDATES + 1) * -(-n_vocab // 2048)


# Masks


def mask_words(n_rows: int) -> int:
    """Words of 32 bits of one token's mask of n_rows: whole pairs of them, one at least."""
    return 2 * max(1, -(-n_rows // 64))


def mask_bytes(n_rows: int) -> int:
    """Bytes of one token's mask: the CPU reads it in words of 64 bits."""
    return 4 * mask_words(n_rows)


# KV cache and positions

KV_TYPES = {"f16": Type.F16, "f32": Type.F32, "q8_0": Type.Q8_0}
"""The types of the KV cache."""
HOST_KV_POSITIONS, HOST_KV_NUMBERS = 64, 16  # the host's cache has whole blocks of both
KV_ALIGNMENT = 16
"""Where keys and values of a layer begin on the device."""


def cache_positions(n_ctx: int, window: int, n_batch: int) -> int:
    """Positions that a layer's cache holds: all, or what n_batch tokens in a row see through a window.

    Position p lies in row p modulo that number. A batch is stored before it is read, so its first token's window
    and its last token are there at once; the host's blocks of positions may hold a part of either at both ends.
    A window of 0 sees all.
    """
    if not window:
        return n_ctx
    blocks = -(-(window + n_batch - 2) // HOST_KV_POSITIONS) + 1
    return min(n_ctx, blocks * HOST_KV_POSITIONS)


def kv_block(kv_type: str) -> int:
    """How many numbers of a head are stored together; a head has to have whole blocks."""
    return GGML_QUANT_SIZES[KV_TYPES[kv_type]][0]


def kv_row_bytes(kv_type: str, n: int) -> int:
    """Bytes of n numbers of a head, whole blocks."""
    block, n_bytes = GGML_QUANT_SIZES[KV_TYPES[kv_type]]
    return n // block * n_bytes


def device_kv_bytes(kv_type: str, n_head_kv: int, n_ctx: int, head_dim: int) -> int:
    """Bytes of a layer's keys on the device, and of its values. q8_0 has all bytes, then all scales."""
    n_bytes = n_head_kv * n_ctx * kv_row_bytes(kv_type, head_dim)
    return -(-n_bytes // KV_ALIGNMENT) * KV_ALIGNMENT


def host_kv_block_bytes(kv_type: str, head_dim: int) -> int:
    """Bytes of one head's keys of 64 positions on the host, and of its values; whole cache lines."""
    whole = -(-head_dim // HOST_KV_NUMBERS) * HOST_KV_NUMBERS
    return HOST_KV_POSITIONS * kv_row_bytes(kv_type, whole)


def host_kv_bytes(kv_type: str, n_ctx: int, head_dim: int) -> int:
    """Bytes of one head's keys of n_ctx positions on the host, and of its values."""
    return -(-n_ctx // HOST_KV_POSITIONS) * host_kv_block_bytes(kv_type, head_dim)


POSITIONS_AT_ONCE = 4096  # so that the float64 angles of a long context take no memory worth naming


def cos_sin_table(
    n_ctx: int, frequencies: NDArray[np.float64], magnitude: float = 1.0
) -> NDArray[np.float32]:
    """Cosine and sine of each pair's angle at each position, float32 [n_ctx, n_rot / 2, 2].

    Worked out in float64, since an angle of thousands has lost its last bits in float32; and once,
    so that card, emulated device and CPU turn by the same bits.

    Args:
        frequencies: angle per position of each pair, as `ref.rope_frequencies` gives them.
        magnitude: multiplies both.
    """
    table = np.empty((n_ctx, len(frequencies), 2), np.float32)
    for start in range(0, n_ctx, POSITIONS_AT_ONCE):
        some = table[start : start + POSITIONS_AT_ONCE]
        angles = np.arange(start, start + len(some))[:, None] * frequencies
        some[..., 0], some[..., 1] = magnitude * np.cos(angles), magnitude * np.sin(angles)
    return table


def cos_sin_bytes(n_ctx: int, n_rot: int) -> int:
    """Bytes of the table."""
    return 4 * n_ctx * n_rot


# Sums in parts, on the device

POSITIONS_A_PART = 256
ROWS_A_GROUP, MOST_GROUPS, MOST_ROWS = 64, 256, 256


def n_parts(n_positions: int) -> int:
    """How many parts of 256 the positions 0 to n_positions - 1 lie in; attention gives each a block of its own."""
    return max(1, -(-n_positions // POSITIONS_A_PART))


def part_classes(n_ctx: int) -> tuple[int, ...]:
    """For how many parts a single token's attention can have blocks: 1, 2, 4 and so on, last all of the context's.

    A launch has the blocks that it was prepared, and captured, with; those without positions do nothing.
    """
    most = n_parts(n_ctx)
    return (*(1 << i for i in range((most - 1).bit_length())), most)


def parts_for(n_positions: int, n_ctx: int) -> int:
    """The class of a token that reads positions 0 to n_positions - 1, or the last of them."""
    return min(1 << (n_parts(n_positions) - 1).bit_length(), n_parts(n_ctx))


def most_parts(n_rows: int, n_ctx: int) -> int:
    """How many parts a token may touch of a cache with n_rows positions: what a window sees may begin within one."""
    return min(n_parts(n_rows) + 1, n_parts(n_ctx))


def is_split(n_tokens: int, n_ctx: int) -> bool:
    """Whether the positions are cut into parts: for one token of a context of several, and so for one of each sequence.

    A batch of one sequence has blocks enough without, and its sums would need a workspace of hundreds of MiB.
    """
    return n_tokens == 1 and n_parts(n_ctx) > 1


def attention_sums_bytes(n_tokens: int, n_head: int, head_dim: int, n_ctx: int) -> int:
    """Bytes of the parts' sums: 4 (head_dim + 2) a head and part; none where nothing is split."""
    return 4 * n_head * n_parts(n_ctx) * (head_dim + 2) if is_split(n_tokens, n_ctx) else 0


def n_groups(n_rows: int) -> int:
    """Into how many groups a sparse FFN cuts the active of n_rows: min(ceil(n_rows / 64), 256).

    Where a tenth of them is active, the eight warps of a block then have a row each, or none. More only where a group
    would have over 256 rows. A function of the plan alone, so that sums have the same
    order in every run.
    """
    return max(1, min(-(-n_rows // ROWS_A_GROUP), MOST_GROUPS), -(-n_rows // MOST_ROWS))


def group_sums_bytes(n_tokens: int, n_rows: int, n: int) -> int:
    """Bytes of the groups' sums: 4 n for each group and token."""
    return 4 * n_tokens * n_groups(n_rows) * n


# Device memory

GRANULE = 512
"""Every allocator of device memory gives a multiple of this many bytes."""


def granules(n_bytes: int) -> int:
    """Bytes that an allocator takes for n_bytes."""
    return -(-n_bytes // GRANULE) * GRANULE
