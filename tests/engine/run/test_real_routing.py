"""The bundled mixture of experts, which is trained: its text and routing, and what a part of it on a device changes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotcold import Engine, load
from hotcold.engine.graph.graph import layer_of
from hotcold.engine.profile.passing import chosen_experts, heard
from hotcold.engine.run.trace import Taken
from hotcold.engine.run.use import DeviceMeter
from hotcold.gguf_io.firing_counts import counts_in_metadata

NAME = "tiny-moe-austen"
FOLDER = Path(__file__).parents[3] / "models" / NAME
REFERENCE: dict[str, Any] = json.loads((FOLDER / "reference.json").read_text())
EXCERPT = FOLDER.parent / "tiny-relu-llama" / "valid_excerpt.txt"
PROMPT = "Mr. Darcy looked at Elizabeth, and"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """By its name, which no file here has."""
    with load(NAME, n_ctx=256, threads=1) as engine:
        yield engine


def continued(engine: Engine) -> str:
    """A greedy continuation."""
    return "".join(engine.generate(PROMPT, 24, temp=0.0))


def words(text: str) -> list[str]:
    """What stands between spaces and marks."""
    return re.findall(r"[A-Za-z]+", text)


def test_it_writes_words_of_its_text(engine: Engine) -> None:
    assert engine.sparsity == "exact" and engine.model.experts_by_neuron
    written = words(continued(engine))
    assert len(written) >= 12 and set(written) <= set(words(EXCERPT.read_text()))


def test_routing_is_what_torch_finds_and_uneven(engine: Engine) -> None:
    """Uses of the experts over the excerpt; no layer uses all alike, and none leaves an expert out."""
    experts = engine.model.experts
    assert experts is not None
    n_expert, ids = experts.n_expert, engine.tokenizer.encode(EXCERPT.read_bytes())[1:]
    uses = np.zeros((engine.model.n_layer, n_expert))

    def hear(taken: Taken) -> None:
        if taken.node.op == "top_k":
            uses[layer_of(taken.node)] += chosen_experts(engine.executor, taken.node, n_expert).sum(0)

    with heard(engine.executor, hear):
        for at in range(0, len(ids) - 254, 255):
            engine.executor.run(np.array([1, *ids[at : at + 255]], np.int32), 0)
    shares = uses / uses.sum(1, keepdims=True)
    assert np.abs(shares - REFERENCE["uses"]["all"]).max() < 0.01
    assert (shares.max(1) > 1.25 * shares.min(1)).all() and shares.min() > 0.01


def test_the_file_knows_its_hot_neurons(engine: Engine) -> None:
    """Counts of its training text: in every layer a quarter of the neurons does over a third of the work."""
    n_layer, n_units = engine.model.n_layer, engine.model.n_units
    counts = counts_in_metadata(engine.file.metadata, n_layer, n_units)
    assert counts is not None
    hottest = np.sort(np.stack(counts), 1)[:, -(n_units // 4) :]
    assert (hottest.sum(1) > np.stack(counts).sum(1) / 3).all()


@pytest.mark.slow
def test_a_device_with_a_part_of_it_writes_the_same(engine: Engine) -> None:
    """Budgets for some single neurons, for most, and for all of them."""
    wanted, shares = continued(engine), []
    for budget in ("1500KiB", "1700KiB", "2MiB"):
        options: dict[str, Any] = {"n_ctx": 128, "n_batch": 32, "threads": 1}
        with load(NAME, device="emulated", vram_budget=budget, **options) as split:
            assert continued(split) == wanted, budget
            plan = split.executor.plan
            assert plan.coverage > plan.hot_share or plan.hot_share == 1
            shares.append(DeviceMeter(split.executor).read().active_device_share)
    assert 0.1 < shares[0] < shares[1] < shares[2] == 1
