"""The `hotcold` command; `python -m hotcold` is the same."""

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, which takes a moment to import
import os
import sys

INTERRUPTED = 128 + _signal.SIGINT  # that of `errors`, which is another file to find before Ctrl-C is heeded


def main() -> None:
    """Run the command. Ctrl-C ends it with 130, quietly, also while it still imports.

    This is the first that happens; what Ctrl-C does before it, while Python itself starts, is Python's.
    """
    before = _signal.getsignal(_signal.SIGINT)
    if before is not _signal.SIG_IGN:  # as for what runs in the background
        _signal.signal(_signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    from hotcold.cli import main as run

    _signal.signal(_signal.SIGINT, before)
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
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    if (folders := sys.modules.get("hotcold.cache_folder")) is not None:
        folders.remove_temporary_folder()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
