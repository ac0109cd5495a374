"""`hotcold perplexity`: what is seen of it while it runs."""

import io
import re
import sys
from pathlib import Path

import pytest

from hotcold.engine.commands.perplexity import PerplexityCommand


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_moves_within_a_chunk_where_somebody_looks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    (tmp_path / "text").write_bytes((tiny / "valid_excerpt.txt").read_bytes()[:3000])
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    monkeypatch.setattr("rich.progress.Progress.update", drawn_at_once())
    PerplexityCommand(file=tmp_path / "text", n_ctx=256, n_batch=32).run()
    passed = [int(n) for n in re.findall(r"(\d+)/\d+", stream.getvalue())]
    assert ("perplexity" in stream.getvalue()) == is_terminal
    assert not is_terminal or (set(range(0, 256, 32)) <= set(passed) and passed[-1] % 256 == 0)


def drawn_at_once() -> object:
    """Not ten times a second, so that nothing is missed."""
    from rich.progress import Progress

    update = Progress.update

    def at_once(self: Progress, *arguments: object, **named: object) -> None:
        update(self, *arguments, **named, refresh=True)  # type: ignore[arg-type]

    return at_once
