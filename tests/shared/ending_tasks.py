"""Tasks for other processes, which have to import them by name: some end their process, some take long."""

import os
import signal
import time
from pathlib import Path


def tenfold_after_ends(folder: Path, times: int, number: int) -> int:
    """Ten times the number; of 3 not before that many processes have ended with it."""
    if number == 3 and (before := len(list(folder.iterdir()))) < times:
        (folder / str(before)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


def sleep(seconds: float) -> float:
    """As long as that."""
    time.sleep(seconds)
    return seconds
