"""A look at a run says where its tokens went and changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotcold import Engine, load
from hotcold.engine.profile.passing import chosen_experts, heard
from hotcold.engine.run import look as looking
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.look import BUS, DEVICE, FFN, PARTS, PREDICTOR, Looks, part_of
from hotcold.engine.run.trace import Taken

MIXTURE = Path(__file__).parents[2] / "data" / "llamacpp" / "olmoe.f16.gguf"
IDS = np.array([3, 4, 5, 6, 7], np.int32)


def opened(**options: Any) -> Engine:
    return load(MIXTURE, n_ctx=32, threads=1, n_batch=8, n_slots=2, **options)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "SECONDS_BETWEEN", 0.0)


def looked_at(looks: Looks, run: Any) -> Any:
    looks.ask()
    with looks.of_next():
        run()
    return looks.last


def test_experts_are_those_that_the_router_chose() -> None:
    with opened() as engine:
        executor, wanted = engine.executor, list[Any]()

        def hear(taken: Taken) -> None:
            if taken.node.op == "top_k":
                wanted.append(chosen_experts(executor, taken.node, 8).sum(axis=0))

        with heard(executor, hear):
            executor.run(IDS, 0)
        look = looked_at(Looks(executor), lambda: executor.run(IDS, 0))
    assert look.n_tokens == 5 and look.n_before == 5
    np.testing.assert_array_equal(look.chosen, wanted)
    assert (look.chosen.sum(axis=1) == 5 * engine.model.experts.n_used).all()  # type: ignore[union-attr]


def runs(executor: Executor, looks: Looks | None) -> tuple[list[Any], list[Any]]:
    """Logits of a prompt, two tokens and a step of two sequences, and the experts of the looks at them."""
    logits, chosen = list[Any](), list[Any]()
    two = np.array([9, 10], np.int32)

    def run(call: Any, *arguments: Any, n: int = 1) -> None:
        out = np.empty((n, executor.model.n_vocab), np.float32)
        if looks is None:
            call(*arguments, out)
        else:
            chosen.append(looked_at(looks, lambda: call(*arguments, out)).chosen)
        logits.append(out)

    run(executor.run, IDS, 0)
    run(executor.run, IDS[:1], 5)
    run(executor.run, IDS[1:2], 6)
    executor.run(IDS[:2], 0, None, 1)
    run(executor.run_apart, two, [7, 2], [0, 1], n=2)
    run(executor.run_apart, two[::-1].copy(), [8, 3], [0, 1], n=2)
    run(executor.run, two, 9, n=2)
    return logits, chosen


def test_a_look_changes_no_bit_and_a_device_chooses_alike(open_emulated: Any) -> None:
    with opened(device="cpu") as engine:
        plain, _ = runs(engine.executor, None)
        looked, on_cpu = runs(engine.executor, Looks(engine.executor))
    for one, other in zip(plain, looked, strict=True):
        np.testing.assert_array_equal(one, other)
    with opened(device="emulated", vram_budget="6MiB") as engine:
        looks = Looks(engine.executor)
        _, on_device = runs(engine.executor, looks)
        assert looks.last is not None and {DEVICE, BUS} <= looks.last.seconds.keys() <= set(PARTS)
    np.testing.assert_array_equal(on_cpu, on_device)


def test_records_of_a_few_kinds_of_runs_are_kept(open_emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device has steps for each length of a batch, of which it keeps the last ones itself."""
    monkeypatch.setattr(looking, "KEPT", 1)
    with opened(device="emulated", vram_budget="6MiB") as engine:
        executor, looks = engine.executor, Looks(engine.executor)
        for n in (1, 3, 4, 1):
            assert looked_at(looks, lambda n=n: executor.run(IDS[:n], 0)).n_tokens == n
            assert len(looks._tracing) == 1


def test_it_looks_only_where_it_was_asked_to_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as engine:
        executor, looks = engine.executor, Looks(engine.executor)
        with looks.of_next():
            executor.run(IDS, 0)
        assert looks.last is None
        with heard(executor, lambda taken: None):
            assert looked_at(looks, lambda: executor.run(IDS, 0)) is None
        assert looked_at(looks, lambda: executor.run(IDS, 0)).seconds[FFN] > 0
        monkeypatch.setattr(looking, "SECONDS_BETWEEN", 60.0)
        looked_at(looks, lambda: executor.run(IDS, 0))
        looked_at(looks, lambda: executor.run(IDS, 0))
        assert looks.number == 2


def test_parts() -> None:
    assert part_of("predictor", "gpu") == part_of("predictor", "cpu") == PREDICTOR
    assert part_of("copy", "cpu") == BUS and part_of("mul_mat", "gpu") == DEVICE
    assert part_of("sparse_gated_ffn", "cpu") == part_of("expert_ffn", "cpu") == FFN
