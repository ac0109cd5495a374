"""What the sparse FFN keeps in a thread's scratch memory, by the byte where it begins; and how much passes at once."""

from hotcold.kernels.cpu.program import THREAD_SCRATCH_BYTES
from hotcold.kernels.cpu.row_lists import WORD

LISTED = 240  # most listed rows between the gate, up and down passes
SEGMENTS = (1024, 2 * WORD)  # rows that a batch of few tokens, or of more, meets before others
# of down's sums that are made at once: whole strips, a window of a block type
DOWN_COLUMNS, DOWN_TOKENS = 512, 64

LIVE, GATES, ADDRESSES, AHEAD, FACTORS = 0, 2048, 3072, 3104, 3136
COLUMNS, DOTS, TOKENS = 3200, 3328, 3392
UPS = 4096  # of one token
ROW_WORDS, ROW_TABLE = 4096, 4096 + 8 * SEGMENTS[0]  # of a batch's gates and ups
WORDS, WIDE = 4096, 8192  # of its sums
SUMS = WIDE + 4 * WORD * DOWN_COLUMNS

if (n_bytes := SUMS + 4 * DOWN_TOKENS * DOWN_COLUMNS) > THREAD_SCRATCH_BYTES:
    raise AssertionError(f"a thread's scratch memory is too small for the {n_bytes} bytes of a sparse FFN")
