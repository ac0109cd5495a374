"""The `hotcold` command; `python -m hotcold` is the same."""

import contextlib
import os
import signal
import sys

from hotcold.errors import INTERRUPTED


def main() -> None:
    """Run the command. Ctrl-C ends it with 130, quietly, also while it still imports."""
    before = signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    from hotcold.cli import main as run

    signal.signal(signal.SIGINT, before)
    try:
        run()
    except KeyboardInterrupt:
        leave()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            leave()
        raise


def leave() -> None:
    """End with 130. Python's own end dies of the signal instead if it came while `exec` ran somewhere."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
