"""bench/draft.py has a line for every kind of text, and looks whether drafts have changed one."""

import sys

import draft
import pytest

from hotcold.engine.generation.generation import Generation


@pytest.mark.slow
def test_every_kind_of_text_has_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["draft.py", "--tokens", "12", "--rounds", "1"])
    draft.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2 * len(draft.KINDS)
    assert all(any(line.startswith(kind) for kind in draft.KINDS) for line in lines)


@pytest.mark.slow
def test_a_text_that_drafts_change_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Generation._advance

    def wrong(self: Generation) -> str:
        return advance(self) + ("" if self.sampling.draft == "off" else "x")

    monkeypatch.setattr(Generation, "_advance", wrong)
    monkeypatch.setattr(sys, "argv", ["draft.py", "--tokens", "4", "--rounds", "1"])
    with pytest.raises(AssertionError, match="changed a text"):
        draft.main()
