"""The model of a card: its launches are the lowering's, and its times move as those of a card would."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from split_runs import IDS, Case, OpenEmulated, model_of, on_device, plan_named

from hotcold.engine.plan.cards import CARDS, card_like
from hotcold.engine.plan.estimate import estimate
from hotcold.engine.plan.launches import graphs_of_a_token, launches_of_a_token
from hotcold.engine.plan.plan import Plan
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.formats import CANDIDATE_WORDS

CARD = CARDS["rtx4090"]


@pytest.fixture
def file(data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "powerinfer" / "llama-q4_0.powerinfer.gguf") as opened:
        yield opened


@pytest.mark.parametrize("budget", ["nothing", "half", "dense + 17%", "everything"])
@pytest.mark.parametrize(
    "name",
    [f"powerinfer/{name}.powerinfer" for name in ("llama-f16", "llama-q4_0", "falcon-q4_0", "opt-f16")]
    + [f"llamacpp/{name}" for name in ("smallthinker.f16", "qwen2moe.q4_0")]
    + [pytest.param("llamacpp/gptoss.mxfp4", marks=pytest.mark.slow)],
)
def test_launches_are_those_of_a_run(name: str, budget: str, data: Path, open_emulated: OpenEmulated) -> None:
    with open_gguf(data / f"{name}.gguf") as file:
        model = model_of(file)
        plan = plan_named(model, Case("off" if model.experts else "predictor"), budget)
        device = open_emulated(build_kind="fast")
        if budget == "nothing":
            assert launches_of_a_token(plan) == graphs_of_a_token(plan) == 0
            return
        with on_device(plan, file, device) as executor:
            logits = np.empty((1, plan.model.n_vocab), np.float32)
            found = np.empty((1, CANDIDATE_WORDS), np.int32) if executor.gives_candidates else None
            executor.run(IDS[:1], 0, logits, candidates=found)
            before, graphs = sum(device.counters.launches.values()), device.counters.graph_launches
            executor.run(IDS[1:2], 1, logits, candidates=found)
            counted = sum(device.counters.launches.values()) - before
            graphs = device.counters.graph_launches - graphs
    assert (launches_of_a_token(plan), graphs_of_a_token(plan)) == (counted, graphs)


def named(file: GGUFFile, budget: str) -> Plan:
    return plan_named(model_of(file), Case("predictor"), budget)


def test_a_faster_part_makes_no_token_slower(file: GGUFFile) -> None:
    for budget in ("half", "dense + 17%", "everything"):
        plan = named(file, budget)
        usual = estimate(plan, CARD)
        assert estimate(plan, replace(CARD, gbps=2 * CARD.gbps)).token < usual.token
        for name in ("ghz", "int8", "halves", "floats"):
            faster = replace(CARD, **{name: 2 * getattr(CARD, name)})
            assert estimate(plan, faster).prompt.seconds <= usual.prompt.seconds
        assert 0 < usual.memory < usual.token and 0 <= usual.waits < usual.token


def test_what_is_on_the_card_makes_nobody_wait(file: GGUFFile) -> None:
    plan = named(file, "everything")
    embedding = next(entry for entry in plan.weights if entry.role == "embedding")
    row = embedding.n_bytes / embedding.n_rows
    assert estimate(plan, CARD).waits == pytest.approx(row / 40e9)
    assert estimate(named(file, "dense + 17%"), CARD).waits > 1e-5


def test_without_a_budget_the_card_does_nothing(file: GGUFFile) -> None:
    found = estimate(named(file, "nothing"), CARD)
    assert found.launches == found.memory == 0 and found.waits == found.token > 0


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx4060ti"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("emulated device on the CPU", None),
    ],
)
def test_a_card_is_known_by_its_drivers_name(description: str, name: str | None) -> None:
    assert card_like(description) == (None if name is None else CARDS[name])


def test_the_dump_shows_it_and_says_that_it_is_a_model() -> None:
    shown = run("offload-dump", "--card", "a100", "--vram-budget", "8MiB,8MiB", "-q")
    assert shown.returncode == 0
    assert "\nOn 2 cards, A100 80GB PCIe each: a model, nothing of it was measured\n" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80 and "a token: " in shown.stdout


def test_a_card_that_nobody_knows() -> None:
    shown = run("offload-dump", "--card", "rtx9", "-q")
    assert shown.returncode == 2 and "rtx4090" in shown.stderr


SEVERAL = {
    "offload-dump --card rtx4090,rtx3090": "--card: rtx4090,rtx3090 (several cards are modelled as alike); "
    "name one, and a budget for each, such as --vram-budget 8GB,8GB",
    "tune --card rtx4090,a100,h100 --vram-budget 1,2,3": "--card: rtx4090,a100,h100 (several cards are modelled as "
    "alike); name one, and a budget for each, such as --vram-budget 8GB,8GB,8GB",
    "offload-dump --device-memory 24GB,8GB": "--device-memory: 24GB,8GB (the memory of each card, all alike); "
    "name one size, and the cards by their budgets, such as --vram-budget 8GB,6GB",
    "offload-dump --card rtx4090 --device cuda:0,cuda:1": "--device: cuda:0,cuda:1 (a plan is for a budget, not for a "
    "device); add --run, or name several cards by their budgets: --vram-budget 8GB,6GB",
    "offload-dump --run --card rtx4090 --device cuda:0,cuda:1": "--card: rtx4090 (does not go with --run); "
    "leave one of them out",
    "tune --card rtx4090 --vram-budget 8,0": "--vram-budget: 8,0 (a card of several has a budget above 0); "
    "leave the card out",
}


@pytest.mark.parametrize("words", SEVERAL)
def test_several_cards_where_one_is_named(words: str) -> None:
    shown = run(*words.split())
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == f"hotcold: error: {SEVERAL[words]}\n"
