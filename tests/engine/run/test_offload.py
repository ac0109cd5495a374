"""From a device and a budget to an executor: what is asked for, less than that with a warning, or an error."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest

import hotcold
from hotcold.engine.dump import inputs as dump
from hotcold.engine.generation.generation import Engine
from hotcold.engine.host import machine
from hotcold.engine.plan import gpu_index, planning
from hotcold.engine.plan.budget import MARGIN_BYTES
from hotcold.engine.plan.graph_memory import graph_bytes
from hotcold.engine.plan.placement import UNIFORM
from hotcold.engine.run import offload
from hotcold.errors import DeviceError, DoesNotFitError, FileError
from hotcold.gguf_io.gpuidx import GpuIndex, index_path, write_index
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

MIB = 1 << 20
MEMORY = 4 * MIB
N_FF, N_LAYER = 1024, 2
SIZE: dict[str, Any] = {"n_ctx": 64, "n_batch": 8, "threads": 1}
Ids = list[int]


class Crowded(EmulatedDriver):
    """A device that others use too: they take `others` bytes when the first allocation is asked for.

    Attributes:
        at_once: they have taken them already, so that nobody is surprised.
    """

    others, at_once, pinned_left = 0, False, 1 << 40
    kernel_bytes, loaded = 0, ()

    def free_and_total(self) -> tuple[int, int]:
        taken = self.others if self.at_once else 0
        return self.memory.total - self.memory.used - taken, self.memory.total

    def load_types(self, endings: Any) -> None:
        self.loaded = tuple(endings)
        self.memory.total -= self.kernel_bytes

    def allocate(self, n_bytes: int) -> Any:
        self.at_once = True
        left = self.free_and_total()[0]
        if n_bytes > left:
            raise DoesNotFitError("device memory", n_bytes, f"{left} of {self.memory.total} bytes left")
        return super().allocate(n_bytes)

    def allocate_pinned(self, n_bytes: int) -> Any:
        self.pinned_left -= n_bytes
        if self.pinned_left < 0:
            raise DoesNotFitError("device memory", n_bytes, "the host refuses")
        return super().allocate_pinned(n_bytes)


@dataclass
class Opened:
    """The options of the device that a load will open, and the devices that were opened."""

    memory: int = MEMORY
    others: int = 0
    at_once: bool = False
    pinned_left: int = 1 << 40
    devices: tuple[Device, ...] = ()

    def open(self, name: str) -> Device:
        driver = Crowded(build_kind="fast", memory=self.memory)
        driver.others, driver.at_once, driver.pinned_left = self.others, self.at_once, self.pinned_left
        self.devices += (Device(driver),)
        return self.devices[-1]


@pytest.fixture
def opened(compiler: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    opened = Opened()
    monkeypatch.setattr("hotcold.engine.device.devices.open_device", opened.open)
    monkeypatch.setattr(machine, "has_cuda_driver", lambda: True)
    yield opened
    for device in opened.devices:
        assert device.closed and device.counters.live_bytes == device.counters.pinned_bytes == 0


@pytest.fixture
def model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model with predictors, whose dense parts and neurons together take 2.1 MiB."""
    monkeypatch.setattr(gpu_index, "cache_path", lambda *_: tmp_path / "cache" / "m.gpuidx")
    copy(data / "powerinfer" / "llama-f16.powerinfer.gguf", tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


def load(model: Path, **options: Any) -> Engine:
    return hotcold.load(model, **{**SIZE, "device": "emulated", "vram_budget": "1400KiB", **options})


def ids_of(engine: Engine) -> Ids:
    generation = engine.generate([5, 6, 7], 4, temp=0.0, ignore_eos=True)
    list(generation)
    return generation.ids


@pytest.fixture
def cpu_ids(model: Path) -> Ids:
    with hotcold.load(model, **SIZE, device="cpu") as engine:
        return ids_of(engine)


def warnings_of(engine: Engine) -> list[str]:
    return [line for line in engine.warnings if line != offload.EMULATED and not line.startswith(UNIFORM)]


@pytest.mark.parametrize("budget", ["1400KiB", "auto", "60%"])
@pytest.mark.parametrize("left", [1_300_000, 1_000_000, 600_000, 320_000])
def test_others_take_the_memory_while_it_is_loaded(
    opened: Opened, model: Path, cpu_ids: Ids, budget: str, left: int
) -> None:
    opened.others = MEMORY - left
    with load(model, vram_budget=budget) as engine:
        (warning,) = warnings_of(engine)
        plan = engine.executor.plan
        assert plan is not None and engine.executor.devices
        assert warning.startswith("a plan of ") and "did not fit the memory of emulated" in warning
        assert f"one of {plan.totals.used / MIB:.1f} MiB runs" in warning
        assert 0.4 * left < plan.totals.used <= left
        assert engine.executor.devices[0].counters.live_bytes == plan.totals.used
        assert ids_of(engine) == cpu_ids


def test_an_explicit_budget_may_be_more_than_is_free_but_not_more_than_there_is(
    opened: Opened, model: Path
) -> None:
    opened.others, opened.at_once = 3 * MIB, True
    with load(model) as engine:
        assert len(warnings_of(engine)) == 1
    with pytest.raises(DoesNotFitError, match="emulated has 4194304 bytes"):
        load(model, vram_budget="5MiB")


def test_auto_takes_what_is_free(opened: Opened, model: Path, cpu_ids: Ids) -> None:
    opened.others, opened.at_once = 3 * MIB, True
    with load(model, vram_budget="auto", strict=True) as engine:
        assert not warnings_of(engine)
        assert engine.executor.plan is not None and engine.executor.plan.budget.n_bytes == MIB
        assert ids_of(engine) == cpu_ids


def test_auto_leaves_a_card_room_for_graphs(
    opened: Opened, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what others may take; of the emulated device they take none."""
    monkeypatch.setattr(Device, "is_emulated", False)
    opened.memory = 512 * MIB
    with load(model, vram_budget="auto", stream_batch=0) as engine:
        budget = engine.executor.plan.budget
        of_graphs = graph_bytes(engine.model, engine.sparsity, "f16")
        assert budget.device is not None and budget.device.graph_bytes == of_graphs > 0
        assert budget.n_bytes == 512 * MIB - MARGIN_BYTES - of_graphs


def test_strict_names_the_sum(opened: Opened, model: Path) -> None:
    opened.others = 3 * MIB
    with pytest.raises(DoesNotFitError) as caught:
        load(model, strict=True)
    text = str(caught.value)
    assert text.startswith("memory of emulated: the plan takes ") and "MiB (" in text
    assert "bytes left); lower --vram-budget" in text


@pytest.mark.parametrize("budget", ["1400KiB", "auto"])
def test_no_plan_is_small_enough(opened: Opened, model: Path, budget: str) -> None:
    opened.others = MEMORY - 100_000
    with pytest.raises(DoesNotFitError) as caught:
        load(model, vram_budget=budget)
    assert "the smallest useful plan needs" in str(caught.value)
    assert str(caught.value).startswith("memory of emulated: ")


@pytest.mark.parametrize("at_once", [False, True])
def test_a_full_card_that_nobody_asked_for_is_left_alone(
    opened: Opened, model: Path, cpu_ids: Ids, at_once: bool
) -> None:
    opened.others, opened.at_once = MEMORY, at_once
    with load(model, device="auto", vram_budget="auto") as engine:
        (warning,) = engine.warnings
        assert warning.startswith("everything runs on the CPU: ") and "smallest useful plan" in warning
        assert not engine.executor.devices and ids_of(engine) == cpu_ids
    with pytest.raises(DoesNotFitError, match="smallest useful plan|the plan takes"):
        load(model, device="auto", vram_budget="auto", strict=True)


def test_a_budget_below_the_smallest_useful_plan(opened: Opened, model: Path) -> None:
    with pytest.raises(DoesNotFitError, match=r"vram_budget: 100KiB, 102400 bytes \(the smallest useful"):
        load(model, vram_budget="100KiB")


def test_a_smaller_plan_does_not_help_the_host(opened: Opened, model: Path) -> None:
    opened.pinned_left = 10_000
    with pytest.raises(DoesNotFitError, match=r"page-locked host memory: \d+ bytes \(the host refuses\)"):
        load(model)
    assert len(opened.devices) == 1


def test_every_allocation_of_a_load_fails_once(opened: Opened, model: Path, cpu_ids: Ids) -> None:
    """The device's three lead to a smaller plan, the host's to an error."""
    for n in range(1, 9):

        def open_failing(name: str, n: int = n) -> Device:
            device = Opened.open(opened, name)
            device.fail_at("alloc", n)
            return device

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hotcold.engine.device.devices.open_device", open_failing)
            if n > 3:
                with pytest.raises(DoesNotFitError, match="page-locked"):
                    load(model)
                continue
            with load(model) as engine:
                assert len(warnings_of(engine)) == 1 and ids_of(engine) == cpu_ids
            with pytest.raises(DoesNotFitError, match="the plan takes"):
                load(model, strict=True)


def test_no_memory_for_the_cache(opened: Opened, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("hotcold.engine.host.side.allocate_kv_cache", none)
    for device in ("cpu", "emulated"):
        with pytest.raises(DoesNotFitError, match="KV cache of n_ctx 64.*no room"):
            load(model, device=device, vram_budget="auto")


def test_strict_refuses_a_smaller_batch(opened: Opened, model: Path) -> None:
    with load(model, vram_budget="300KiB", n_batch=32) as engine:
        assert engine.n_batch < 32 and "n_batch lowered from 32" in warnings_of(engine)[0]
    with pytest.raises(DoesNotFitError, match=r"n_batch: 32 \(it needs a budget of (\d+) bytes") as caught:
        load(model, vram_budget="300KiB", n_batch=32, strict=True)
    needed = int(str(caught.value).split("budget of ")[1].split()[0])
    with load(model, vram_budget=f"{needed}B", n_batch=32, strict=True) as engine:
        assert engine.n_batch == 32


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr("hotcold.engine.device.devices.open_device", lambda name: None)
    with load(model, device="auto", vram_budget="auto") as engine:
        assert not engine.executor.devices and not engine.warnings
    with pytest.raises(DeviceError, match="leave out --strict"):
        load(model, device="auto", vram_budget="auto", strict=True)
    for budget in ("1400KiB", "50%", "8"):
        with pytest.raises(DeviceError, match=f"vram_budget: {budget} .no usable GPU"):
            load(model, device="auto", vram_budget=budget)
    with load(model, device="auto", vram_budget="0", strict=True) as engine:
        assert not engine.executor.devices


# Index files beside the model


def foreign(path: Path, n_layer: int = N_LAYER, n: int = 3) -> None:
    write_index(index_path(path), GpuIndex((np.arange(n, dtype=np.int32),) * n_layer, 0), N_FF)


def garbage(path: Path) -> None:
    index_path(path).write_bytes(b"GGUF" + bytes(100))


def of_another_model(path: Path) -> None:
    foreign(path, n_layer=5)


def too_many(path: Path) -> None:
    foreign(path, n=N_FF)


@pytest.mark.parametrize("write", [garbage, of_another_model, too_many])
def test_an_index_that_cannot_be_used(
    opened: Opened, model: Path, cpu_ids: Ids, write: Callable[[Path], None]
) -> None:
    write(model)
    before = index_path(model).read_bytes()
    with load(model) as engine:
        (warning,) = warnings_of(engine)
        assert warning.startswith(f"index {index_path(model)} is not used: ")
        assert ids_of(engine) == cpu_ids
    with pytest.raises(FileError, match="delete it, or leave out --strict"):
        load(model, strict=True)
    assert index_path(model).read_bytes() == before
    with pytest.raises(DoesNotFitError):
        load(model, vram_budget="100KiB", strict=True)


def test_a_foreign_index_that_fits_is_used(opened: Opened, model: Path, cpu_ids: Ids) -> None:
    foreign(model)
    with load(model, strict=True) as engine:
        (line,) = warnings_of(engine)
        assert line == f"hot neurons from {index_path(model)}, which hotcold did not write"
        assert engine.executor.plan is not None
        assert [split.n_hot for split in engine.executor.plan.layers] == [3] * N_LAYER
        assert ids_of(engine) == cpu_ids


def test_an_index_of_another_budget(opened: Opened, model: Path, cpu_ids: Ids) -> None:
    source = dump.open_source(model, None, None, None)
    how = planning.wanted(source, "auto", 64, 8, "f16")
    plan = planning.make_plan(source, how, dump.budget_of("1200KiB", None))
    dump.write_index_for("hotcold", plan, source, how)
    made = index_path(model).read_bytes()
    with pytest.raises(FileError, match="delete it, or leave out --strict"):
        load(model, strict=True)
    assert index_path(model).read_bytes() == made
    with load(model) as engine:
        unused, written = warnings_of(engine)
        assert unused.startswith(f"index {index_path(model)} is not used: made for")
        assert written == f"index written to {index_path(model)}"
        assert ids_of(engine) == cpu_ids
    with load(model, strict=True) as engine:
        assert warnings_of(engine) == [f"hot neurons from {index_path(model)}"]


def test_an_index_that_cannot_be_written_is_no_error(
    opened: Opened, model: Path, cpu_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_an_index_of_another_budget(opened, model, cpu_ids)

    def refuse(*arguments: Any) -> None:
        raise FileError("index file", arguments[0], "Read-only file system")

    monkeypatch.setattr("hotcold.engine.plan.gpu_index.write_index", refuse)
    with load(model, vram_budget="1500KiB") as engine:
        assert warnings_of(engine)[1].startswith("no index is written: ")


def test_a_smaller_plan_takes_no_index(opened: Opened, model: Path, cpu_ids: Ids) -> None:
    """One line, and the file stays as it is."""
    foreign(model, n=300)
    before = index_path(model).read_bytes()
    opened.others = 3 * MIB
    with load(model) as engine:
        (warning,) = warnings_of(engine)
        assert warning.startswith("a plan of ") and ids_of(engine) == cpu_ids
    assert index_path(model).read_bytes() == before


def test_auto_takes_what_is_free_beside_the_kernels_of_the_models_types(
    opened: Opened, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are loaded before the device is asked; a budget in bytes asks for nothing."""
    monkeypatch.setattr(Crowded, "kernel_bytes", 100_000)
    with load(model, vram_budget="auto") as engine:
        device = engine.executor.devices[0]
        assert device is not None and device.driver.loaded == ("f16",)  # type: ignore[attr-defined]
        assert engine.executor.plan.budget.n_bytes == MEMORY - 100_000
    with load(model) as engine:
        assert engine.executor.devices
        assert engine.executor.devices[0].driver.loaded == ()  # type: ignore[attr-defined]
