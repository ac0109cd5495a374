"""What a divided run says of itself, and that it goes on after a failure."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_runs import (
    IDS,
    MIXED,
    Case,
    OpenEmulated,
    cpu_executor,
    mixed_logits,
    model_of,
    on_device,
    plan_with,
    some_neurons,
)

import hotcold
from hotcold.engine.generation.generation import Engine
from hotcold.engine.run.use import DeviceMeter
from hotcold.errors import DeviceError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device

pytestmark = pytest.mark.pairwise
N_HOT = 300
PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"temp": 0.0, "repeat_penalty": 1.0}
NAMES = ("llama-f16", "falcon-f16", "opt-f16", "llama-q4_0")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(name: str, data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "powerinfer" / f"{name}.powerinfer.gguf") as opened:
        yield opened


@pytest.mark.sample(3)
def test_both_sides_look_at_the_neurons_that_powerinfer_did(
    name: str, file: GGUFFile, data: Path, split_device: Device
) -> None:
    """Its masks were recorded: hot neurons of them on the device, the others on the CPU, each once."""
    recorded = np.load(data / "powerinfer" / f"{name}.npz")
    ids, active = recorded["ids"][:8], recorded["active"][:, :8]
    model = model_of(file)
    hot = some_neurons(model, N_HOT)
    on_the_device = [int(active[i][:, ids_of].sum()) for i, ids_of in enumerate(hot)]
    with on_device(plan_with(model, Case("predictor"), hot), file, split_device) as executor:
        meter = DeviceMeter(executor)
        for i, token in enumerate(ids):
            executor.run(np.array([token], np.int32), i, None)
        use = meter.read()
        assert executor.device_counts().tolist() == on_the_device
    assert (use.listed_device, use.listed_host) == (sum(on_the_device), active.sum() - sum(on_the_device))
    assert use.active_device_share == sum(on_the_device) / active.sum()
    assert use.ffn_device_share == N_HOT / model.n_ff


def test_launches_are_prepared_once(
    file: GGUFFile, split_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's too, whichever tokens of a batch it is wanted for."""
    model, case = model_of(file), Case("predictor")
    with on_device(plan_with(model, case, some_neurons(model, N_HOT)), file, split_device) as executor:
        mixed_logits(executor)
        monkeypatch.setattr(Device, "prepare", None)
        mixed_logits(executor)


@pytest.mark.sample(3)
def test_both_sides_together_list_what_the_cpu_alone_does(file: GGUFFile, split_device: Device) -> None:
    """In batches of any length too."""
    model, case = model_of(file), Case("predictor")
    with cpu_executor(model, file, case) as executor:
        mixed_logits(executor)
        wanted = executor.counts[..., 0].sum(1)
    with on_device(plan_with(model, case, some_neurons(model, N_HOT)), file, split_device) as executor:
        mixed_logits(executor)
        host, device = executor.counts[..., 0].sum(1), executor.device_counts()
        use = DeviceMeter(executor).read()
        assert (host + device).tolist() == wanted.tolist()
    assert (use.listed_host, use.listed_device) == (host.sum(), device.sum())
    assert 0 < use.active_device_share < 1


@pytest.mark.sample(3)
@pytest.mark.parametrize("sparsity", ["exact", "off"])
def test_without_a_predictor_every_neuron_is_looked_at(
    sparsity: str, file: GGUFFile, split_device: Device
) -> None:
    model = model_of(file)
    plan = plan_with(model, Case(sparsity), some_neurons(model, N_HOT))
    with on_device(plan, file, split_device) as executor:
        mixed_logits(executor)
        assert DeviceMeter(executor).read().active_device_share == N_HOT / model.n_ff


def test_memory_and_launches(file: GGUFFile, split_device: Device) -> None:
    plan = plan_with(model_of(file), Case("predictor"), some_neurons(model_of(file), N_HOT))
    with on_device(plan, file, split_device) as executor:
        meter = DeviceMeter(executor)
        before = meter.read()
        executor.run(IDS[:1], 0, None)
        n_launches = sum(split_device.counters.launches.values())
        use = meter.read().since(before)
    assert use.vram_planned == use.vram_used == plan.totals.used
    assert 0 < use.kernel_launches <= n_launches
    assert use.device == split_device.name


@pytest.fixture
def engine(compiler: str) -> Iterator[Engine]:
    with hotcold.load(device="emulated", vram_budget="5MiB", n_ctx=64, n_batch=8, threads=2) as opened:
        yield opened


FIGURES = ("vram_planned", "vram_used", "kernel_launches", "ffn_device_share", "active_device_share")


def test_the_statistics_have_the_device(engine: Engine) -> None:
    numbers = []
    for _ in range(2):
        generation = engine.generate(PROMPT, 2, **GREEDY)
        "".join(generation)
        numbers.append(generation.statistics.numbers())
    assert numbers[0]["device"] == "emulated"
    assert {name: numbers[0][name] for name in FIGURES} == {name: numbers[1][name] for name in FIGURES}
    assert numbers[0]["graph_captures"] > numbers[1]["graph_captures"] == 0 < numbers[1]["graph_launches"]
    assert 0 < numbers[0]["vram_planned"] == numbers[0]["vram_used"] <= 5 << 20
    assert 0 < numbers[0]["ffn_device_share"] < numbers[0]["active_device_share"] < 1
    seconds = numbers[1]["prompt_seconds"] + numbers[1]["decode_seconds"]
    assert 0 < numbers[1]["host_microseconds_per_token"] < 1e6 * seconds
    _, line = generation.statistics.lines()
    for words in ("emulated: VRAM", "FFN", "active", "on the CPU"):
        assert words in line
    assert any("for checking, not for speed" in warning for warning in engine.warnings)


def test_the_command_prints_them(compiler: str) -> None:
    options = [
        "--device",
        "emulated",
        "--vram-budget",
        "8MiB",
        "-c",
        "64",
        "-b",
        "8",
        "-n",
        "2",
        "--temp",
        "0",
    ]
    command = [sys.executable, "-m", "hotcold", "generate", "-p", PROMPT, "--json", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    printed = json.loads(done.stdout)
    flat = printed | printed.get("statistics", {})
    assert flat["device"] == "emulated"
    assert all(flat[name] > 0 for name in FIGURES)
    assert "for checking, not for speed" in done.stderr


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", ["launch", "h2d", "d2h"])
@pytest.mark.parametrize("n", [1, 5])
def test_a_run_that_failed_leaves_nothing_behind(
    kind: str, n: int, data: Path, open_emulated: OpenEmulated
) -> None:
    with open_gguf(data / "powerinfer" / "llama-f16.powerinfer.gguf") as file:
        model, device = model_of(file), open_emulated(build_kind="fast", policy="late")
        plan = plan_with(model, Case("predictor"), some_neurons(model, N_HOT))
        with on_device(plan, file, device) as executor:
            wanted, logits = mixed_logits(executor), np.empty((1, model.n_vocab), np.float32)
            executor.run(IDS[: MIXED[0]], 0, None)
            device.fail_at(kind, n)
            with pytest.raises(DeviceError, match="failed"):
                for _ in range(3):
                    executor.run(IDS[4:5], 4, logits)
            executor.run(IDS[4:7], 4, np.empty((3, model.n_vocab), np.float32))  # as if it had not been
            executor.run(IDS[7:8], 7, logits)
            assert logits.tobytes() == wanted[7:8].tobytes()
            assert mixed_logits(executor).tobytes() == wanted.tobytes()


@pytest.mark.slow
def test_a_text_goes_on_after_a_failure(engine: Engine) -> None:
    """A chat's next turn finds the part that ran, and no more, in the cache."""
    device = engine.executor.devices[0]
    assert device is not None
    ids = engine.tokenizer.encode(PROMPT, parse_special=True)
    whole = engine.generate(ids, 6, **GREEDY)
    wanted = "".join(whole)
    failed = engine.generate(ids, 6, **GREEDY)
    next(failed)
    device.fail_at("launch", 30)
    with pytest.raises(DeviceError, match="failed"):
        "".join(failed)
    after = engine.generate([*failed.prompt_ids, *failed.ids], 6 - len(failed.ids), **GREEDY, after=failed)
    "".join(after)
    assert after.statistics.n_reused > 0
    assert failed.ids + after.ids == whole.ids
    assert "".join(engine.generate(ids, 6, **GREEDY)) == wanted
