"""Sizes of what the kernels read and write, for those that make room for it. Nothing here is compiled."""

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.kernels.cpu.program import MAX_CHUNKS

# ---- weights, and their inputs ------------------------------------------------------

WINDOW, PACKED_WINDOW_BYTES = 512, 768  # numbers of a packed input that lie together, and their bytes


def is_quantised(type_id: int) -> bool:
    """Whether a weight's input is rounded and packed."""
    return GGML_QUANT_SIZES[GGMLQuantizationType(type_id)][0] > 1


def row_bytes(type_id: int, k: int) -> int:
    """Bytes of a row of k weights."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
    return k // block * size


def packed_bytes(k: int) -> int:
    """Bytes of k inputs packed, whole windows of 512."""
    return -(-k // WINDOW) * PACKED_WINDOW_BYTES


# ---- experts ------------------------------------------------------------------------

GROUP_HEAD, GROUP_ENTRY = 16, 24  # bytes in front of the experts' entries, and of an entry


def group_bytes(n_expert: int, n_pairs: int) -> int:
    """Bytes that GROUP writes at most."""
    return GROUP_HEAD + GROUP_ENTRY * n_expert + 8 * n_pairs


# ---- attention ----------------------------------------------------------------------

PART = 512  # positions; a multiple of the 64 of a block
SPLIT_TOKENS = 16  # the most that are cut by parts
STATE = 128  # bytes of a record before its sums
MOST_WIDE_ROWS = 6  # of a register tile of float32
BLOCK_NUMBERS, BLOCK_ROWS = 24576, 192  # sums of a block of rows stay in the second-level cache
_BLOCKS = 32  # blocks of rows that keep some threads busy


def padded(head_dim: int) -> int:
    """Numbers of a value's row: whole vectors."""
    return (head_dim + 15) // 16 * 16


def rows_of_block(n_tokens: int, group: int, n_head_kv: int, n_numbers: int) -> int:
    """Rows that go through the positions together: a function of the batch alone.

    Args:
        n_numbers: of a row, padded.
    """
    most = min(BLOCK_ROWS, BLOCK_NUMBERS // n_numbers)
    n_rows = n_tokens * group
    if n_tokens <= SPLIT_TOKENS:
        return min(most, n_rows)
    blocks = (_BLOCKS + n_head_kv - 1) // n_head_kv
    even = (n_rows + blocks - 1) // blocks
    return min(most, (even + MOST_WIDE_ROWS - 1) // MOST_WIDE_ROWS * MOST_WIDE_ROWS)


def attention_parts(n_ctx: int) -> int:
    """Parts of a whole context."""
    return -(-n_ctx // PART)


def attention_chunks(n_tokens: int, n_head: int, n_head_kv: int, head_dim: int, n_ctx: int) -> int:
    """Into how many chunks an ATTENTION op of at most n_tokens is cut: as many as have work, or fewer."""
    group = n_head // n_head_kv

    def blocks(n: int) -> int:
        return n_head_kv * -(-n * group // rows_of_block(n, group, n_head_kv, padded(head_dim)))

    items = max(blocks(min(n_tokens, SPLIT_TOKENS)) * attention_parts(n_ctx), blocks(n_tokens))
    return min(items, MAX_CHUNKS)


def attention_partial_bytes(n_tokens: int, n_head: int, head_dim: int, n_ctx: int) -> int:
    """Bytes of the parts' sums between ATTENTION and ATTENTION_JOIN."""
    if attention_parts(n_ctx) == 1:
        return 0
    return min(n_tokens, SPLIT_TOKENS) * n_head * attention_parts(n_ctx) * (STATE + 4 * padded(head_dim))
