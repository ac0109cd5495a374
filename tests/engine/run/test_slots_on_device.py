"""Several sequences whose caches are on a device: the bits of each are those that it has alone."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from slot_runs import N_STEPS, alone, prompts, together
from split_runs import (
    Case,
    OpenEmulated,
    model_of,
    on_device,
    plan_with,
    some_neurons,
    split_plan,
)

from hotcold.engine.device.side import DeviceSide
from hotcold.engine.device.store import loaded_stores
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget, of_cards
from hotcold.engine.plan.footprint import head_part
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device

N_SLOTS, N_CTX, N_BATCH, PLENTY = 3, 48, 16, 1 << 30


def case_of(sparsity: str, kv_type: str, n_slots: int = N_SLOTS, n_ctx: int = N_CTX) -> Case:
    return Case(sparsity, kv_type, n_ctx, N_BATCH, n_slots=n_slots)


def plan_of(file: GGUFFile, case: Case) -> Plan:
    """All on the device, but for half of the neurons where these are placed one by one."""
    model = model_of(file)
    if case.sparsity in ("off", "threshold"):
        return split_plan(model, case, PLENTY)
    return plan_with(model, case, some_neurons(model, model.n_ff // 2))


def cards(*sizes: int) -> Budget:
    return of_cards([Budget(str(n), n, "a test") for n in sizes])


def bits(found: Sequence[NDArray[Any]]) -> list[bytes]:
    return [each.tobytes() for each in found]


CASES = [
    pytest.param("llamacpp/llama.f16", "off", "f16", marks=pytest.mark.slow),
    pytest.param("llamacpp/llama.f32", "off", "f32", marks=pytest.mark.slow),
    pytest.param("llamacpp/llama.q4_k", "off", "f32", marks=pytest.mark.slow),
    pytest.param("powerinfer/llama-f16.powerinfer", "predictor", "q8_0", marks=pytest.mark.slow),
    pytest.param("llamacpp/gemma3.q4_0", "off", "f16", marks=pytest.mark.slow),
    pytest.param("llamacpp/qwen2moe.q4_0", "off", "f16", marks=pytest.mark.slow),
    pytest.param("llamacpp/falcon.f16", "off", "f16", marks=pytest.mark.slow),
    ("powerinfer/llama-q4_0.powerinfer", "predictor", "f16"),
    pytest.param("powerinfer/bamboo-f16.powerinfer", "exact", "f32", marks=pytest.mark.slow),
    pytest.param("powerinfer/opt-f16.powerinfer", "predictor", "f16", marks=pytest.mark.slow),
]
DEVICES: list[tuple[bool, dict[str, Any]]] = [
    (True, {"policy": "late"}),
    (False, {"policy": "random", "seed": 5}),
    (True, {"policy": "eager"}),
]


def opened(open_emulated: OpenEmulated, has_graphs: bool, **options: Any) -> Device:
    device = open_emulated(build_kind="fast", **options)
    device.has_graphs = has_graphs
    return device


@pytest.mark.parametrize(("name", "sparsity", "kv_type"), CASES)
def test_bits_do_not_depend_on_neighbours(
    name: str, sparsity: str, kv_type: str, data: Path, open_emulated: OpenEmulated
) -> None:
    """Nor on how many slots there are, on when enqueued work runs, or on graphs."""
    with open_gguf(data / f"{name}.gguf") as file:
        one, several = (plan_of(file, case_of(sparsity, kv_type, n)) for n in (1, N_SLOTS))
        assert {cache.side for cache in several.caches} == {"gpu"}
        assert [w.device_rows for w in one.weights] == [w.device_rows for w in several.weights]
        each = prompts(several.model.n_vocab)
        with on_device(one, file, opened(open_emulated, True)) as executor:
            wanted = [bits(alone(executor, prompt, N_STEPS)) for prompt in each]
        for (graphs, options), order in zip(DEVICES, ([0, 1, 2], [2, 0, 1], [1, 2]), strict=True):
            with on_device(several, file, opened(open_emulated, graphs, **options)) as executor:
                found = together(executor, each[: len(order)], order)
                assert list(map(bits, found)) == wanted[: len(order)], options
                assert bits(alone(executor, each[0], N_STEPS, 2)) == wanted[0]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "sparsity", "kv_type"), [getattr(each, "values", each) for each in CASES])
def test_bits_do_not_depend_on_neighbours_on_a_card(
    name: str, sparsity: str, kv_type: str, data: Path, card: Device
) -> None:
    """With graphs and without."""
    check_on(card, name, sparsity, kv_type, data)


def test_the_check_of_a_card_can_be_run(data: Path, open_emulated: OpenEmulated) -> None:
    check_on(opened(open_emulated, True), "llamacpp/llama.f16", "off", "f16", data)


def check_on(device: Device, name: str, sparsity: str, kv_type: str, data: Path) -> None:
    with open_gguf(data / f"{name}.gguf") as file:
        one, several = (plan_of(file, case_of(sparsity, kv_type, n)) for n in (1, N_SLOTS))
        each = prompts(several.model.n_vocab)
        with on_device(one, file, device) as executor:
            wanted = [bits(alone(executor, prompt, N_STEPS)) for prompt in each]
        for has_graphs in (device.has_graphs, False):
            device.has_graphs = has_graphs
            with on_device(several, file, device) as executor:
                assert list(map(bits, together(executor, each, [2, 0, 1]))) == wanted
                assert bits(alone(executor, each[0], N_STEPS, 2)) == wanted[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kv_type"),
    [
        ("llamacpp/llama.f16", "f16"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("llamacpp/llama.f16", "f32"),
                ("llamacpp/gemma3.f16", "f16"),
                ("llamacpp/gemma3.f16", "f32"),
                ("llamacpp/smallthinker.f16", "f16"),
                ("powerinfer/llama-f16.powerinfer", "q8_0"),
            )
        ),
    ],
)
def test_parts_of_a_long_context_are_joined_for_each(
    name: str, kv_type: str, data: Path, open_emulated: OpenEmulated
) -> None:
    """Of two parts, and of one; gemma3 has windows in most of its layers."""
    with open_gguf(data / f"{name}.gguf") as file:
        one, several = (plan_of(file, case_of("off", kv_type, n, 320)) for n in (1, N_SLOTS))
        dice = np.random.default_rng(1)
        each = [dice.integers(3, 200, n).astype(np.int32) for n in (300, 8, 258)]
        with on_device(one, file, opened(open_emulated, True)) as executor:
            wanted = [after_each(executor, prompt, 0) for prompt in each]
        with on_device(several, file, opened(open_emulated, True)) as executor:
            for slot, prompt in enumerate(each):
                assert after_each(executor, prompt, slot) == wanted[slot]
            logits = np.empty((3, executor.model.n_vocab), np.float32)
            last = np.array([p[-1] for p in each], np.int32)
            executor.run_apart(last, [p.size - 1 for p in each], [0, 1, 2], logits)
            assert bits(list(logits)) == wanted


def after_each(executor: Executor, prompt: NDArray[np.int32], slot: int) -> bytes:
    """The logits after a prompt, whose last token runs by itself."""
    logits = np.empty((1, executor.model.n_vocab), np.float32)
    for start in range(0, prompt.size - 1, N_BATCH):
        executor.run(prompt[start : min(start + N_BATCH, prompt.size - 1)], start, None, slot)
    executor.run(prompt[-1:], prompt.size - 1, logits, slot)
    return logits.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("has_room", [True, False])
def test_over_two_cards(has_room: bool, data: Path, open_emulated: OpenEmulated) -> None:
    """Also where the second one has no room for its caches."""
    with open_gguf(data / "powerinfer/llama-f16.powerinfer.gguf") as file:
        model, how = model_of(file), case_of("predictor", "f16").wanted
        plan = placement.plan(model, how, cards(PLENTY, PLENTY))
        if not has_room:
            totals = plan.cards[1].totals
            dense = totals.used - totals.hot_rows - head_part(model).n_bytes
            plan = placement.plan(model, how, cards(PLENTY, dense - totals.kv_cache // 2))
        assert [(each.card, each.side) for each in plan.caches] == [
            (0, "gpu"),
            (1, "gpu" if has_room else "cpu"),
        ]
        devices = [opened(open_emulated, True) for _ in range(2)]
        each = prompts(model.n_vocab)
        with Executor(plan, file, 2, loaded_stores(devices, plan, file)) as executor:
            wanted = [bits(alone(executor, prompt, N_STEPS)) for prompt in each]
            assert list(map(bits, together(executor, each, [2, 0, 1]))) == wanted


@pytest.mark.sample(3)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_slot_goes_into_an_array_and_back(kv_type: str, data: Path, split_device: Device) -> None:
    """From one slot to another, which says the same then; those beside it keep what they hold."""
    with open_gguf(data / "powerinfer/llama-f16.powerinfer.gguf") as file, ExitStack() as stack:
        plan = plan_of(file, case_of("predictor", kv_type))
        executor = stack.enter_context(on_device(plan, file, split_device))
        first, second, _ = prompts(plan.model.n_vocab)
        wanted = [bits(alone(executor, prompt, 2)) for prompt in (first, second)]
        alone(executor, first, 0, 0)
        alone(executor, second, 0, 1)
        kept = executor.caches(second.size, 1)
        executor.fill_caches(second.size, kept, 2)
        assert [each.tobytes() for each in executor.caches(second.size, 2)] == [k.tobytes() for k in kept]
        logits = np.empty((2, plan.model.n_vocab), np.float32)
        last = np.array([first[-1], second[-1]], np.int32)
        executor.run_apart(last, [first.size - 1, second.size - 1], [0, 2], logits)
        assert bits(list(logits)) == [each[0] for each in wanted]
        zeros = [np.zeros_like(each) for each in kept]
        assert bits(executor.caches(second.size, 1)) == bits(kept) != bits(zeros)


def test_a_key_that_a_slots_cache_cannot_hold_is_found(data: Path, open_emulated: OpenEmulated) -> None:
    with open_gguf(data / "llamacpp/llama.f16.gguf") as file:
        plan = plan_of(file, case_of("off", "f16"))
        with on_device(plan, file, opened(open_emulated, True)) as executor:
            alone(executor, prompts(plan.model.n_vocab)[0], 0, 1)
            keys, _ = executor.store_of(1).cache(1)
            keys.array[keys.shape[0] // N_SLOTS] = np.inf  # the second slot's first number
            assert executor.overflow(1, 1) == executor.overflow() == 1
            assert executor.overflow(1, 0) is executor.overflow(1, 2) is None


# Bugs that are put in, each of which has to be seen in the bits


def wrong(change: Callable[[list[int]], list[int]]) -> Callable[..., None]:
    send = DeviceSide.send_positions

    def sends(self: DeviceSide, positions: NDArray[np.integer], slots: Sequence[int]) -> None:
        send(self, positions, change(list(slots)))

    return sends


BUGS = {
    "all in the first slot": wrong(lambda slots: [0] * len(slots)),
    "two slots exchanged": wrong(lambda slots: slots[::-1]),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_slot_is_seen(
    bug: str, data: Path, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_gguf(data / "llamacpp/llama.f16.gguf") as file:
        plan = plan_of(file, replace(case_of("off", "f16"), n_ctx=32))
        with on_device(plan, file, opened(open_emulated, True)) as executor:
            each = prompts(plan.model.n_vocab)
            wanted = [bits(alone(executor, prompt, N_STEPS)) for prompt in each]
            monkeypatch.setattr(DeviceSide, "send_positions", BUGS[bug])
            assert list(map(bits, together(executor, each, [0, 1, 2]))) != wanted
