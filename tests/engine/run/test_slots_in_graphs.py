"""Steps of several slots as graphs: a set for each number of tokens, and the bits of launches one by one."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from slot_runs import prompts
from split_runs import Case, OpenEmulated, model_of, on_device, plan_with, some_neurons, split_plan

from hotcold.engine.device.replay import Replays
from hotcold.engine.device.side import DeviceSide
from hotcold.engine.device.steps import Logits
from hotcold.engine.device.store import loaded_stores
from hotcold.engine.host.steps import Context, Step
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget, of_cards
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import DeviceError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.formats import CANDIDATE_WORDS

N_SLOTS, PLENTY, NEVER = 4, 1 << 30, 1 << 30
STEPS = [(2, 0, 1), (1, 2), (0, 2, 1), (1, 0)]
"""Slots of the tokens of each step."""


@pytest.fixture
def plan(file: GGUFFile) -> Plan:
    """Half of each layer's neurons on the device, and all caches."""
    model = model_of(file)
    return plan_with(
        model, Case("predictor", "f16", 48, 16, n_slots=N_SLOTS), some_neurons(model, model.n_ff // 2)
    )


class Sequences:
    """Some prompts, each in the slot of its number, and how far they are."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.n_past = executor, list[int]()
        for slot, prompt in enumerate(prompts(executor.model.n_vocab)):
            executor.run(prompt, 0, None, slot)
            self.n_past.append(prompt.size)

    def step(self, slots: Sequence[int], chooses: bool = False) -> bytes:
        """The next token of each of these slots: what comes of it."""
        n = len(slots)
        logits = np.zeros((n, self.executor.model.n_vocab), np.float32)
        found = np.zeros((n, CANDIDATE_WORDS), np.int32) if chooses else None
        places = [self.n_past[slot] for slot in slots]
        ids = np.array([31 + 7 * slot + place for slot, place in zip(slots, places, strict=True)], np.int32)
        if n == 1:
            self.executor.run(ids, places[0], logits, slots[0], candidates=found)
        else:
            self.executor.run_apart(ids, places, slots, logits, found)
        for slot in slots:
            self.n_past[slot] += 1
        return logits.tobytes() if found is None else found.tobytes()


def opened(open_emulated: OpenEmulated, has_graphs: bool = True, policy: str = "late") -> Device:
    device = open_emulated(build_kind="fast", policy=policy)
    device.has_graphs = has_graphs
    return device


def bits(plan: Plan, file: GGUFFile, device: Device) -> list[bytes]:
    """See `bits_of`."""
    with on_device(plan, file, device) as executor:
        return bits_of(executor)


def bits_of(executor: Executor) -> list[bytes]:
    """Of steps of which some want logits and others candidates, with single tokens between them."""
    sequences, found = Sequences(executor), list[bytes]()
    for chooses in (False, True):
        found += [sequences.step(slots, chooses) for slots in (*STEPS, (1,))]
    return found


def test_graphs_change_no_bit(plan: Plan, file: GGUFFile, open_emulated: OpenEmulated) -> None:
    wanted = bits(plan, file, opened(open_emulated, has_graphs=False))
    for policy in ("late", "random", "eager", "ahead"):
        assert bits(plan, file, opened(open_emulated, policy=policy)) == wanted, policy


def test_two_cards_have_the_bits_of_one(file: GGUFFile, open_emulated: OpenEmulated) -> None:
    """And both launch graphs alone, which read what the CPU has made where it lies."""

    def placed(*sizes: int, hot: Sequence[NDArray[np.int32]] | None = None) -> Plan:
        budget = of_cards([Budget(str(n), n, "a test") for n in sizes])
        return placement.plan(model, Wanted("predictor", 48, 16, "f16", n_slots=N_SLOTS), budget, hot=hot)

    model = model_of(file)
    two = placed(*(card.totals.used - card.totals.hot_rows // 2 for card in placed(PLENTY, PLENTY).cards))
    one = placed(PLENTY, hot=[layer.hot for layer in two.layers])
    wanted = bits(one, file, opened(open_emulated, has_graphs=False))
    for policy in ("late", "ahead"):
        devices = [open_emulated(build_kind="fast", policy=policy, index=i) for i in range(2)]
        with Executor(two, file, 2, loaded_stores(devices, two, file)) as executor:
            assert bits_of(executor) == wanted, policy
        assert all(device.counters.graph_launches for device in devices)


@pytest.mark.parametrize("is_split", [True, False])
def test_each_number_of_tokens_is_captured_once(
    is_split: bool, plan: Plan, file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    """And again, where others have run meanwhile; a step has as many graphs as a token, and kernels of one without."""
    n = plan.model.n_layer + 1 if is_split else 1
    if not is_split:
        plan = split_plan(plan.model, Case("predictor", "f16", 48, 16, n_slots=N_SLOTS), PLENTY)
    steps = [(0, 1), (1, 2), (0, 1, 2), (0,), (2, 1), (2, 0, 1), (0,), (0, 1, 2, 3), (0,), (2, 1, 0), (1, 0)]
    launches = []
    for has_graphs in (False, True):
        device = opened(open_emulated, has_graphs)
        with on_device(plan, file, device) as executor:
            sequences, counted = Sequences(executor), list[tuple[int, ...]]()
            executor.run(np.array([5, 9], np.int32), 0, None, 3)
            sequences.n_past.append(2)
            for slots in steps:
                before = _counted(device)
                sequences.step(slots, chooses=True)
                counted.append(tuple(b - a for a, b in zip(before, _counted(device), strict=True)))
        launches.append([kernels for *_, kernels in counted])
    captured, launched, _ = zip(*counted, strict=True)
    # the single token had none but the head's to be captured: a prompt of one token ran before
    assert captured == (n, 0, n, 1, 0, 0, 0, n, 0, 0, n) and set(launched) == {n}
    assert launches[0] == launches[1]


def _counted(device: Device) -> tuple[int, ...]:
    counters = device.counters
    return counters.graph_captures, counters.graph_launches, sum(counters.launches.values())


def test_a_step_has_the_class_of_its_longest_text(data: Path, open_emulated: OpenEmulated) -> None:
    """Which changes while steps go on, and when the long one goes; its graphs are captured anew then."""
    with open_gguf(data / "llamacpp/llama.f16.gguf") as file:
        plan = split_plan(model_of(file, 1), Case("off", "f16", 320, 64, n_slots=N_SLOTS), PLENTY)
        found, captures = [], list[int]()
        for has_graphs in (False, True):
            device = opened(open_emulated, has_graphs)
            with on_device(plan, file, device) as executor:
                sequences = Sequences(executor)
                ids = np.random.default_rng(1).integers(3, 200, 254).astype(np.int32)
                for start in range(0, ids.size, 64):
                    executor.run(ids[start : start + 64], start, None, 1)
                sequences.n_past[1] = ids.size
                for slots in ((0, 1), (0, 1), (1, 0), (0, 1), (0, 2), (1, 2)):
                    before = device.counters.graph_captures
                    found.append(sequences.step(slots))
                    captures.append(device.counters.graph_captures - before)
    assert found[:6] == found[6:] and captures == 6 * [0] + [1, 0, 1, 0, 1, 1]


# A failure


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["launch", "h2d", "d2h"])
def test_the_next_step_runs_after_one_that_failed(
    kind: str, every: bool, plan: Plan, file: GGUFFile, open_emulated: OpenEmulated
) -> None:
    """Wherever a captured one does."""
    device, failed = opened(open_emulated), 0
    with on_device(plan, file, device) as executor:
        sequences = Sequences(executor)
        sequences.step((0, 1, 2))
        n_past, captures = list(sequences.n_past), device.counters.graph_captures
        right = sequences.step((0, 1, 2), chooses=True)
        for n in count(1) if every else iter((1, 2, 5)):
            sequences.n_past = list(n_past)
            device.fail_at(kind, n)
            try:
                assert sequences.step((0, 1, 2), chooses=True) == right
                break
            except DeviceError as error:
                assert "as fail_at asked" in str(error)
                failed = n
            assert sequences.step((0, 1, 2), chooses=True) == right, n
        device.fail_at(kind, NEVER)
        assert device.counters.graph_captures == captures
    # up go positions and embeddings; down go each layer's copy, and the candidates of three tokens
    n_layer = plan.model.n_layer
    assert failed >= ({"launch": 10 * n_layer, "h2d": 2, "d2h": n_layer + 3}[kind] if every else 2)


# Bugs that are put in, each of which has to be seen in the bits


def one_for_all(self: Replays, steps: Sequence[Step], n_tokens: int) -> list[Step]:
    """The graphs of the first number of several tokens serve all others."""
    of_all: list[Step] = self.__dict__.setdefault("of_all", OF(self, steps, n_tokens))
    return of_all if n_tokens > 1 else OF(self, steps, n_tokens)


def one_head_for_all(self: Replays, steps: Sequence[Step], n_tokens: int) -> list[Step]:
    """Each has graphs of its own, but the last one, which is that of the first."""
    replays = OF(self, steps, n_tokens)
    last: Step = self.__dict__.setdefault("last", replays[-1])
    return [*replays[:-1], last]


def sent_once(of: str) -> Callable[..., None]:
    """Positions, or slots, are those of the first step of as many tokens."""
    kept = dict[int, tuple[NDArray[np.integer], Sequence[int]]]()

    def sends(self: DeviceSide, positions: NDArray[np.integer], slots: Sequence[int]) -> None:
        if len(set(slots)) == len(slots):
            first = kept.setdefault(len(slots), (positions, slots))
            positions, slots = (first[0], slots) if of == "positions" else (positions, first[1])
        SEND(self, positions, slots)

    return sends


def searching_where_asked(self: Logits, context: Context) -> None:
    """As if a graph were of those alone for whom it was captured."""
    if context.logits is not None:
        for launch in self.before:
            self.device.run(launch, self.device.compute)
        self._enqueue_token(context.n_tokens - len(context.logits), context.candidates is not None)


def bits_or_none(plan: Plan, file: GGUFFile, device: Device) -> list[bytes]:
    """None of a run that reaches for what is not there."""
    try:
        return bits(plan, file, device)
    except DeviceError:
        return []


OF, SEND = Replays.of, DeviceSide.send_positions
BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a graph of another number of tokens": lambda patch: patch.setattr(Replays, "of", one_for_all),
    "another's head": lambda patch: patch.setattr(Replays, "of", one_head_for_all),
    "positions of the first step": lambda patch: patch.setattr(
        DeviceSide, "send_positions", sent_once("positions")
    ),
    "slots of the first step": lambda patch: patch.setattr(DeviceSide, "send_positions", sent_once("slots")),
    "a graph without the search serves who wants candidates": lambda patch: patch.setattr(
        Logits, "enqueue", searching_where_asked
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_graphs_of_slots_is_seen(
    bug: str, plan: Plan, file: GGUFFile, open_emulated: OpenEmulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = bits(plan, file, opened(open_emulated))
    BUGS[bug](monkeypatch)
    assert bits_or_none(plan, file, opened(open_emulated)) != wanted
