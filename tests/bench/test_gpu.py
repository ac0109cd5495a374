"""bench/gpu.py and bench/split.py do what they say, before anyone waits for a card."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gpu
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gpu_bed import Bed, CardClock, Weights
from gpu_case import Sizes
from gpu_kernels import groups_of_cases
from gpu_vector_kernels import vector_cases
from planned import half_the_neurons, plan_for, random_relu_model, shape_of, whole_plan
from split_layer import measure, parts, split_layers
from stub_cupy import StubCupy
from stub_driver import SleepingDriver, StubDriver

from hotcold.engine.device.steps import CopyDown
from hotcold.engine.device.store import loaded_stores
from hotcold.engine.host.steps import take_all
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.nvrtc import load_nvrtc
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

SIZES = Sizes(n_embd=256, n_ff=288, n_head=4, n_head_kv=2, n_tokens=3, n_ctx=1100)
Type = GGMLQuantizationType


def kernels_of(text: str) -> set[str]:
    return set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))


@pytest.mark.slow
def test_the_whole_bench_on_the_emulated_device(
    open_emulated: Callable[..., Device], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        "--device emulated --shape tiny --minutes 9 --seconds 1 --threads 1 --budgets 0% 75% all --folder"
    )
    assert gpu.run([*command.split(), str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert kernels_of(text) == set(open_emulated().driver.signatures)
    assert not re.search("WRONG|FAILED|want of time|Not measured", text)
    assert len(re.findall(r"\| the same \|", text)) == 3
    assert re.search(r"^\| 75% \| 2 \| [0-9.]+ \|", text, re.MULTILINE), "two split layers"
    assert not list(tmp_path.iterdir()), "the model is deleted"


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_the_model_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "--device emulated --shape tiny --seconds 0.1 --threads 1 --no-kernels --budgets all --folder"
    assert gpu.run([*command.split(), str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert not kernels_of(text) and "| all | " in text


@pytest.mark.slow
def test_every_kernel_has_a_case() -> None:
    with Device(StubDriver()) as device:
        bed, seen = Bed(device, 1), set()
        for _, cases in groups_of_cases(SIZES):
            seen |= {case.work.kernel for case in cases(bed)}
            bed.free()
        assert seen == set(device.driver.signatures)
        assert device.counters.live_bytes == device.counters.pinned_bytes == 0


def test_a_wrong_result_is_seen(open_emulated: Callable[..., Device]) -> None:
    bed = Bed(open_emulated(build_kind="fast"), 1)
    case = next(vector_cases(bed, SIZES))
    assert gpu.measure_case(bed, case).good
    right, spoiled = case.got, np.zeros((1, SIZES.n_embd))
    spoiled[0, 7] = 1e-4
    worse = gpu.measure_case(bed, replace(case, got=lambda: right() + spoiled))
    assert not worse.good and "WRONG" in gpu.kernel_line(worse, 1e9)
    assert not gpu.measure_case(bed, replace(case, got=lambda: right() * np.nan)).good
    bed.close()


def test_a_ring_has_copies_of_the_same_weights(open_emulated: Callable[..., Device]) -> None:
    bed = Bed(open_emulated(build_kind="fast"), 300_000)
    weights = Weights(bed, Type.Q4_0, 96, 256)
    assert weights.n_copies == -(-300_000 // (3 * 96 * 144))
    first, last = (bed.get(weights.planes(1, copy)[1]) for copy in (0, weights.n_copies - 1))
    assert (first == last).all() and (first != bed.get(weights.planes(0, 0)[1])).any()
    assert len(bed.get(weights.planes(1, 0, 10)[1])) == 10 * 128
    bed.close()


def test_a_card_is_timed_by_its_events(compiler: str, keep_device: Callable[[Device], Device]) -> None:
    try:
        load_nvrtc()
    except DeviceError as error:
        pytest.skip(str(error))
    cupy = StubCupy(EmulatedDriver(build_kind="fast", memory=1 << 20))
    source = program(SOURCES / "rms_norm.cu")  # NVRTC takes seconds for all kernels
    bed = Bed(keep_device(Device(CudaDriver(source=source, cupy=cupy))), 1)
    assert isinstance(bed.clock, CardClock) and bed.clock.copy_bandwidth() > 0
    case = next(vector_cases(bed, SIZES))
    before = bed.device.counters.launches.total()
    measured = gpu.measure_case(bed, case)
    assert measured.good and measured.seconds > 0
    assert bed.device.counters.launches.total() - before == 1 + 2 * 200
    bed.close()
    assert bed.device.counters.live_bytes == 0


def test_what_times_a_card_is_in_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    assert callable(cupy.cuda.get_elapsed_time) and isinstance(cupy.cuda.runtime.memcpyDeviceToDevice, int)


# Split layers


def test_the_parts_of_a_token_are_its_split_layers(tmp_path: Path) -> None:
    shape, how = shape_of("tiny"), Wanted("predictor", 64, 8)
    with random_relu_model(tmp_path, shape, Type.F16, 32) as (file, model), Device(StubDriver()) as device:
        whole = whole_plan(model, device, how)
        with Executor(whole, file, 1, loaded_stores((device,), whole, file)) as executor:
            assert split_layers(executor) == 0
        plan = plan_for(model, device, how, half_the_neurons(whole))
        with Executor(plan, file, 1, loaded_stores((device,), plan, file)) as executor:
            steps = executor.run_steps.of(1)
            assert split_layers(executor) == shape.n_layer
            for begin, end in parts(steps):
                kinds = [type(step) for step in steps[begin:end]]
                assert kinds[0] is CopyDown and kinds.count(CopyDown) == 1
                assert any(node.op == "merge" for node in steps[end - 1].nodes)


def test_a_sleeping_device_works_while_the_host_does(tmp_path: Path) -> None:
    shape, how, driver = shape_of("tiny"), Wanted("predictor", 64, 8), SleepingDriver()
    with random_relu_model(tmp_path, shape, Type.F16, 32) as (file, model), Device(driver) as device:
        plan = plan_for(model, device, how, half_the_neurons(whole_plan(model, device, how)))
        with Executor(plan, file, 1, loaded_stores((device,), plan, file)) as executor:
            driver.seconds["sparse_gated_ffn"] = 0.02
            times = measure(executor, 0.2)
            driver.seconds["sparse_gated_ffn"] = 0.0
            awake = measure(executor, 0.1)
    assert times.device >= 0.02 and times.together >= 0.02
    assert awake.device < 0.02
    assert executor.taking is take_all
