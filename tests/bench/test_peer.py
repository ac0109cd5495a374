"""`bench/peer.py` is told what to compare, and refuses the rest before a model is written."""

from pathlib import Path

import pytest
from peer import asked


def test_what_is_compared() -> None:
    found = asked(["--types", "q4_0", "q4_k_m", "--depths", "512,4096"])
    assert (found.types, found.depths, found.batches) == (["q4_0", "q4_k_m"], [512, 4096], [])
    assert asked([]).types == ["q4_0", "q8_0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--types", "q9"], "invalid choice: 'q9'"),
        (["--depths", "0"], "invalid numbers value: '0'"),
        (["--batches", "1,x"], "invalid numbers value: '1,x'"),
        (["-m", "none.gguf"], "no file: none.gguf"),
        (["--powerinfer", "none"], "no file: none"),
    ],
)
def test_refusals(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        asked(words)
    assert ended.value.code == 2 and said in capsys.readouterr().err
