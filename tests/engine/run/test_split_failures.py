"""Every call of a split run fails, once or from then on: a clear error, nothing left, the next run works."""

import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.engine.device.cards import Cards
from hotcold.engine.device.store import loaded_stores
from hotcold.engine.model.load import load_model
from hotcold.engine.plan import planning
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.placement import UNIFORM
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.executor import Executor
from hotcold.errors import DeviceError, DoesNotFitError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

Open = Callable[..., Device]
Logits = NDArray[np.float32]
N_THREADS = 3
KINDS = ("alloc", "launch", "h2d", "d2h")
NEVER = 1 << 30


@pytest.fixture(scope="module")
def file(data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "powerinfer" / "llama-f16.powerinfer.gguf") as file:
        yield file


@pytest.fixture(scope="module")
def plan(file: GGUFFile) -> Plan:
    """All dense parts and a part of the neurons on the device."""
    source = planning.Source(load_model(file), "", None, "", 0, None, UNIFORM)
    how = planning.wanted(source, "auto", 16, 4, "f16", 2)
    plan = planning.make_plan(source, how, Budget("1.4MB", 1_400_000, ""))
    assert plan.n_dense_layers == 2 and 0.1 < plan.hot_share < 0.9 and plan.n_batch == 4
    return plan


def run(executor: Executor) -> Logits:
    """Logits after a prompt of three tokens, after two more, and after two steps of two sequences."""
    logits = np.full((7, executor.model.n_vocab), np.nan, np.float32)
    executor.run(np.array([3, 5, 4], np.int32), 0, logits[:1])
    executor.run(np.array([7], np.int32), 3, logits[1:2])
    executor.run(np.array([8], np.int32), 4, logits[2:3])
    for i in range(2):
        executor.run_apart(np.array([9, 6], np.int32), [i, 5 + i], [1, 0], logits[3 + 2 * i : 5 + 2 * i])
    return logits


def load_and_run(plan: Plan, file: GGUFFile, device: Device) -> Logits:
    with Executor(plan, file, N_THREADS, loaded_stores((device,), plan, file)) as executor:
        return run(executor)


def nothing_is_left(device: Device) -> bool:
    counters = device.counters
    threads = [t for t in threading.enumerate() if t.name.startswith("hotcold-")]
    return not (counters.live_bytes or counters.pinned_bytes or threads)


def numbers(every: bool) -> Iterator[int]:
    """The calls that are to fail: every one, or some of the first."""
    return count(1) if every else iter((1, 2, 5))


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("policy", "every"), [("random", False), pytest.param("late", True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_fails_between_loading_and_the_last_token(
    plan: Plan, file: GGUFFile, open_emulated: Open, kind: str, policy: str, every: bool
) -> None:
    device = open_emulated(build_kind="fast", policy=policy)
    right = load_and_run(plan, file, device)
    assert np.isfinite(right).all() and nothing_is_left(device)
    failed = 0
    for n in numbers(every):
        device.fail_at(kind, n)
        try:
            got = load_and_run(plan, file, device)
        except (DoesNotFitError, DeviceError) as error:
            assert isinstance(error, DoesNotFitError) == (kind == "alloc")
            assert "as fail_at asked" in str(error)
            failed = n
        else:
            assert np.array_equal(got, right)
            break
        assert nothing_is_left(device), (kind, n)
        if n % 8 == 1:
            assert np.array_equal(load_and_run(plan, file, device), right), (kind, n)
            assert nothing_is_left(device)
    device.fail_at(kind, NEVER)
    # three slabs, four page-locked arrays, staging; two split layers a token; a copy a layer and the logits
    assert failed >= ({"alloc": 8, "launch": 60, "h2d": 20, "d2h": 9}[kind] if every else 5)


@pytest.mark.sample(5)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_executor_runs_again_after_a_failed_run(
    plan: Plan, file: GGUFFile, open_emulated: Open, kind: str, every: bool
) -> None:
    device = open_emulated(build_kind="fast")
    with Executor(plan, file, N_THREADS, loaded_stores((device,), plan, file)) as executor:
        right, failed = run(executor), 0
        held = device.counters.live_bytes, device.counters.pinned_bytes
        for n in numbers(every):
            device.fail_at(kind, n)
            try:
                assert np.array_equal(run(executor), right)
                break
            except DeviceError as error:
                assert "as fail_at asked" in str(error)
                failed = n
            assert np.array_equal(run(executor), right), (kind, n)
            assert (device.counters.live_bytes, device.counters.pinned_bytes) == held
        device.fail_at(kind, NEVER)
    assert failed >= ({"launch": 60, "h2d": 9, "d2h": 9}[kind] if every else 5)
    assert nothing_is_left(device)


class Vanishing:
    """A driver whose device is gone after a number of calls: from then on each of them fails.

    What only gives memory back goes on, as `CudaDriver` has it.
    """

    def __init__(self, driver: EmulatedDriver) -> None:
        self.driver, self.calls_left, self.made = driver, NEVER, 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.driver, name)
        if not callable(value) or name in ("release", "release_pinned", "address"):
            return value

        def call(*arguments: Any) -> Any:
            self.count(name)
            result = value(*arguments)
            if name != "prepare":
                return result

            def enqueue(stream: Any) -> None:
                self.count("launch")
                result(stream)

            return enqueue

        return call

    def count(self, name: str) -> None:
        self.made += 1
        self.calls_left -= 1
        if self.calls_left < 0:
            raise DeviceError(f"cuda:0, {name}", "the device is gone", "CUDA failed", "see dmesg")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_device_vanishes(plan: Plan, file: GGUFFile, compiler: str, every: bool) -> None:
    driver: Any = Vanishing(EmulatedDriver(build_kind="fast"))
    with Device(driver) as device:
        before = driver.made
        with Executor(plan, file, N_THREADS, loaded_stores((device,), plan, file)) as executor:
            run(executor)
            n_calls = driver.made - before
    assert n_calls > 200
    for n in range(0, n_calls, 1 if every else n_calls // 10):
        driver = Vanishing(EmulatedDriver(build_kind="fast"))
        device = Device(driver)
        driver.calls_left = n
        with pytest.raises(DeviceError, match="the device is gone"):
            load_and_run(plan, file, device)
        device.close()
        assert driver.driver.memory.used == 0 and device.counters.pinned_bytes == 0, n
        assert not [t for t in threading.enumerate() if t.name.startswith("hotcold-")]


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [2, 4])
def test_ctrl_c_at_any_moment(plan: Plan, file: GGUFFile, open_emulated: Open, n_threads: int) -> None:
    """Whether the other threads linger, sleep or walk: the next run is right, and nothing is left at the end."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    device, interrupted, n_times = open_emulated(build_kind="fast"), 0, 100
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Executor(plan, file, n_threads, loaded_stores((device,), plan, file)) as executor:
            right, started = run(executor), perf_counter()
            run(executor)
            longest = perf_counter() - started
            for delay in np.random.default_rng(0).uniform(1e-6, longest, n_times).tolist():
                try:
                    signal.setitimer(signal.ITIMER_REAL, delay)
                    run(executor)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                assert np.array_equal(run(executor), right)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > n_times // 4
    assert nothing_is_left(device)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_second_ctrl_c_leaves_the_waiting_to_the_next_call(
    plan: Plan, file: GGUFFile, open_emulated: Open, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    """Before the host writes, or gives back, what kernels and copies are still about."""

    def interrupted(self: Cards) -> None:
        raise KeyboardInterrupt

    device = open_emulated(build_kind="fast")
    with Executor(plan, file, N_THREADS, loaded_stores((device,), plan, file)) as executor:
        right = run(executor)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Cards, "settle", interrupted)
            device.fail_at("launch", 20)
            run(executor)
        device.log = []
        if goes_on:
            assert np.array_equal(run(executor), right)
    assert device.log[0].what == "host waits"
    assert nothing_is_left(device)


def test_a_thread_that_does_not_start(
    plan: Plan, file: GGUFFile, open_emulated: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one does; it ends, and the device's memory is given back."""
    device = open_emulated(build_kind="fast")
    start, started = threading.Thread.start, list[threading.Thread]()

    def once(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", once)
    with pytest.raises(DoesNotFitError, match=r"threads: 3 \(the system starts 2 of them\)"):
        Executor(plan, file, N_THREADS, loaded_stores((device,), plan, file))
    assert not started[0].is_alive() and nothing_is_left(device)
