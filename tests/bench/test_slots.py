"""bench/slots.py does what it says, before anyone has a card."""

from collections.abc import Sequence

import numpy as np
import pytest
import slots
from numpy.typing import NDArray
from planned import SHAPES
from random_model import LlamaShape

from hotcold.engine.device.side import DeviceSide

TINY = "--device", "emulated", "--shape", "tiny", "--tokens", "1"


@pytest.fixture(autouse=True)
def a_smaller_model(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = LlamaShape(n_embd=64, n_ff=96, n_layer=1, n_head=2, n_head_kv=2, n_vocab=100, n_ctx=32)
    monkeypatch.setitem(SHAPES, "tiny", shape)
    monkeypatch.setattr(slots, "RANK", 32)
    monkeypatch.setattr(slots, "CHECKED", 2)


@pytest.mark.usefixtures("compiler")
def test_a_row_for_each_number_of_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    assert slots.run(TINY) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.endswith("as alone |")]
    assert [row[0] for row in rows] == ["| 1", "| 2", "| 4"]
    assert all(float(row[1]) > 0 for row in rows) and rows[0][2] == "1.00"


@pytest.mark.usefixtures("compiler")
def test_a_wrong_slot_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    send = DeviceSide.send_positions

    def sends(self: DeviceSide, positions: NDArray[np.integer], slots: Sequence[int]) -> None:
        send(self, positions, [0] * len(slots))

    monkeypatch.setattr(DeviceSide, "send_positions", sends)
    assert slots.run(TINY) == 1
    assert "OTHERS THAN ALONE" in capsys.readouterr().out


def test_prompts_fit_and_have_lengths_of_their_own() -> None:
    found = slots.prompts(500, 64)
    assert len({ids.size for ids in found}) == len(found) == 4 and found[-1].size < 64
