"""Nothing in a split layer is there in vain: without a wait, a step or a node the logits are others."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from split_runs import (
    IDS,
    Case,
    Logits,
    OpenEmulated,
    mixed_logits,
    model_of,
    on_device,
    plan_with,
    some_neurons,
)

from hotcold.engine.device.cards import Cards
from hotcold.engine.graph.graph import Tensor, tensors_of
from hotcold.engine.graph.offsets import offsets
from hotcold.engine.graph.placed import PlacedGraph, results
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.errors import HotcoldError
from hotcold.gguf_io import GGUFFile, open_gguf

KINDS = (pytest.param("f16", marks=pytest.mark.slow), "q4_0")


@pytest.fixture(params=KINDS)
def file(request: pytest.FixtureRequest, data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "powerinfer" / f"llama-{request.param}.powerinfer.gguf") as opened:
        yield opened


@pytest.fixture(params=["predictor", pytest.param("exact", marks=pytest.mark.slow)])
def plan(request: pytest.FixtureRequest, file: GGUFFile) -> Plan:
    model = model_of(file)
    return plan_with(model, Case(request.param), some_neurons(model, model.n_ff // 2))


def test_a_removed_wait_is_found(
    plan: Plan, file: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the policy `late` alone: one that runs work when it is enqueued hides it."""
    logits = {}
    for waits in (True, False):
        if not waits:
            monkeypatch.setattr(Cards, "_waits", lambda self, before, but=None: iter(()))
        for policy in ("eager", "late"):
            with on_device(plan, file, open_emulated(build_kind="fast", policy=policy)) as executor:
                logits[waits, policy] = mixed_logits(executor).tobytes()
    assert logits[True, "late"] == logits[True, "eager"] == logits[False, "eager"] != logits[False, "late"]


def run_token(executor: Executor, token: int) -> Logits:
    """At position 2, behind two tokens."""
    logits = np.empty((1, executor.model.n_vocab), np.float32)
    executor.run(IDS[token : token + 1], 2, logits)
    return logits


def test_every_step_of_a_token_is_needed(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated) -> None:
    """Launches, copies, waits and walks; what a step has left from the run before is another token's."""
    with on_device(plan, file, open_emulated(build_kind="fast", policy="late")) as executor:
        executor.run(IDS[:2], 0, None)
        wanted, steps = run_token(executor, 2).tobytes(), executor.run_steps.kept[1]
        assert len(steps) > 20
        for i, step in enumerate(steps):
            executor.run_steps.kept[1] = steps
            run_token(executor, 7)
            executor.run_steps.kept[1] = steps[:i] + steps[i + 1 :]
            assert run_token(executor, 2).tobytes() != wanted, step


def without(placed: PlacedGraph, i: int) -> PlacedGraph:
    """The graph without node i; who reads a result of it reads its operand in that place instead."""
    removed = placed.nodes[i].node
    before, nodes = tensors_of(removed), []
    instead = dict(zip(results(removed), before, strict=False))
    for p in (*placed.nodes[:i], *placed.nodes[i + 1 :]):
        inputs = tuple(instead.get(o, o) if isinstance(o, Tensor) else o for o in p.node.inputs)
        nodes.append(replace(p, node=replace(p.node, inputs=inputs)))
    return PlacedGraph(placed.n_tokens, tuple(nodes))


def test_every_node_of_a_split_layer_is_needed(
    plan: Plan, file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    """Without one there is no run, or one with other logits."""
    placed = plan.decode.placed
    with on_device(plan, file, open_emulated(build_kind="fast")) as executor:
        executor.run(IDS[:2], 0, None)
        wanted = run_token(executor, 2).tobytes()
    inside = [i for i, p in enumerate(placed.nodes) if "-1" in p.node.name]
    assert {placed.nodes[i].node.op for i in inside} >= {
        "copy",
        "merge",
        "add",
        "sparse_gated_ffn",
        "rms_norm",
    }
    for i in inside:
        try:
            rest = without(placed, i)
            less = replace(plan, decode=replace(plan.decode, placed=rest, arenas=offsets(rest)))
            with on_device(less, file, open_emulated(build_kind="fast")) as executor:
                executor.run(IDS[:2], 0, None)
                logits = run_token(executor, 2).tobytes()
        except (HotcoldError, KeyError):
            continue
        assert logits != wanted, placed.nodes[i].node.name
