"""A split plan that several files of tests run: half of each layer's neurons on the device."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from split_runs import Case, model_of, plan_with, some_neurons

from hotcold.engine.device import replay
from hotcold.engine.plan.plan import Plan
from hotcold.gguf_io import GGUFFile, open_gguf


@pytest.fixture
def file(data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "powerinfer" / "llama-q4_0.powerinfer.gguf") as opened:
        yield opened


@pytest.fixture
def plan(file: GGUFFile) -> Plan:
    model = model_of(file)
    return plan_with(model, Case("predictor"), some_neurons(model, model.n_ff // 2))


@pytest.fixture(autouse=True)
def graphs_without_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watched launch waits for all that runs, and would hide what late and early orders are to show."""
    monkeypatch.setattr(replay, "WATCHED", 0)
