"""Where a team's caller leaves a job for the others: cells of 64 bits, at addresses from a common one on.

    POSTED   twice the number of jobs so far, one more while a job is being written
    SLEEPERS threads that sleep, or are about to, until POSTED changes
    JOB      what a thread has to know of a job: round, address of the records, their number, run parameters
    AT + 64 i what thread i looks at: POSTED, or NOWHERE

Thread i writes down what it is about to look at, and then looks whether that is still the job. So who finds NOWHERE
in all cells after a job was posted knows that nobody looks at an older one, now or later.
"""

import numpy as np
from numpy.typing import NDArray

LINE = 64  # bytes of a cache line: what different threads write lies apart
POSTED, SLEEPERS, JOB, AT = 0, LINE, 2 * LINE, 3 * LINE
NOWHERE = -1

# of a program, int64: what a job is made of
N_HEAD = 4
ROUND, RECORDS, N_RECORDS, PARAMETERS = range(0, 8 * N_HEAD, 8)


def looks(box: NDArray[np.uint8]) -> NDArray[np.int64]:
    """What each thread but the caller looks at: a view of a mailbox."""
    return box[AT:].view(np.int64)[:: LINE // 8]


def size(n_threads: int) -> int:
    """Bytes of a mailbox."""
    return AT + LINE * max(1, n_threads - 1)
