"""Bugs of the text of matmul_transposed.cu, a batch's product with down rows, which every run of it must show."""

from functools import partial

from kernel_launches import run_matmul_transposed
from planted_bug import Bug

NEXT_STEP = (
    "        wait_for_copies<0>();\n        __syncthreads();                          // the step is there"
)
UNDER_WAY = "race, .* a copy is under way that began at .*, and was not waited for"

_bug = partial(Bug, "matmul_transposed.cu", run_matmul_transposed)
BUGS = {
    "down rows added before they are there": _bug(
        NEXT_STEP, "        wait_for_copies<0>();  // the step is there", "race, |before anybody wrote"
    ),
    "hidden values read before they have come": _bug(
        NEXT_STEP, "        __syncthreads(), wait_for_copies<0>();  // the step is there", "race, "
    ),
    "hidden values that nobody waits for": _bug(
        NEXT_STEP, "        __syncthreads();  // the step is there", UNDER_WAY
    ),
    "the next down rows laid over those that are read": _bug(
        "steps[which ^ 1]", "steps[which]", "race, |before anybody wrote"
    ),
    "half of the down rows laid": _bug(
        "for (int i = 0; i < AT_ONCE; i++)\n        for (int k = 0; k < 8; k += 4) {",
        "for (int i = 0; i < 1; i++)\n        for (int k = 0; k < 8; k += 4) {",
        "before anybody wrote",
    ),
    "a row read behind a step's last": _bug(
        "first < DOWN_ROWS - DOWN_FOUR ? DOWN_FOUR : 0;", "DOWN_FOUR;", "race, |before anybody wrote"
    ),
}
