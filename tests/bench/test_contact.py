"""bench/contact.py and bench/launches.py do what they say, before anyone has a card for eight minutes."""

import json
import subprocess
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import NoReturn, cast

import compile_units
import contact
import launches
import pytest
import trouble
from contact import Outcome, Step
from stub_cupy import StubCupy

from hotcold.engine.dump.inputs import open_source
from hotcold.engine.plan.budget import Budget, DeviceFacts
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.planning import make_plan, wanted
from hotcold.errors import DoesNotFitError
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.nvrtc import build_code
from hotcold.kernels.cuda.device.units import all_units
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver


def python(name: str, program: str, seconds: float = 60.0, **more: object) -> Step:
    return Step(name, (sys.executable, "-c", program), seconds, **more)  # type: ignore[arg-type]


def test_every_file_and_bench_that_a_step_names_is_there() -> None:
    steps = list(contact.steps_of_a_card("cuda:0", 2.5))
    named = [Path(word) for step in steps for word in step.command if word.endswith(".py")]
    assert len(named) > 20 and all(path.is_file() for path in named)
    assert len({step.name for step in steps}) == len(steps)


@pytest.mark.slow
def test_every_file_of_tests_for_a_card_is_in_a_step() -> None:
    words = "-m", "pytest", "--collect-only", "-q", "-n0", "-m", "gpu and not slow", "tests"
    listed = subprocess.run(
        (sys.executable, *words), cwd=contact.ROOT, capture_output=True, text=True, check=True
    )
    files = {line.split("::")[0] for line in listed.stdout.splitlines() if "::" in line}
    assert files == {*contact.KERNEL_PATHS, *contact.RUN_PATHS}


def test_tests_that_are_named_are_there() -> None:
    for _, name, which in contact.SANITIZED:
        text = (contact.ROOT / f"tests/kernels/cuda/test_{name}.py").read_text()
        assert all(f"def {word}(" in text for word in which.split() if word.startswith("test_"))


@pytest.mark.parametrize(
    "program, problem",
    [
        ("print(1)", ""),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("import time; print(2, flush=True); time.sleep(60)", "took too long"),
    ],
)
def test_what_becomes_of_a_step(tmp_path: Path, program: str, problem: str) -> None:
    seconds = 0.3 if "sleep" in program else 60.0
    outcome = contact.run_step(python("step", program, seconds), tmp_path, 600)
    assert outcome.problem == problem
    assert (tmp_path / "step.txt").read_text() == outcome.printed


def test_what_a_late_step_has_begun_ends_with_it(tmp_path: Path) -> None:
    """compute-sanitizer's program, say, which would keep the card."""
    begin = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    step = python("step", f"{begin}.pid, flush=True); time.sleep(60)", 2.0)
    started = time.perf_counter()
    outcome = contact.run_step(step, tmp_path, 600)
    assert outcome.problem == "took too long" and time.perf_counter() - started < 30
    stat = Path(f"/proc/{int(outcome.printed)}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.perf_counter() - started < 30
        time.sleep(0.05)


def test_steps_are_chosen_by_how_their_names_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = python("slots-1b", "print('| 1 | 2.0 |'); raise SystemExit(1)")
    told = python("slots", "print('| 1 | 5.0 |')", told=True, says=lambda printed: "5 tokens/s")
    steps = [python("card", "print(1)"), told, failing]
    monkeypatch.setattr(contact, "steps_of_a_card", lambda device, minutes: iter(steps))
    assert contact.run(["--folder", str(tmp_path), "--steps", "slots"]) == 1
    shown = capsys.readouterr().out
    assert "card" not in shown and "well, 5 tokens/s" in shown and "\nslots\n\n| 1 | 5.0 |" in shown
    assert "slots-1b: exit code 1" in shown and shown.endswith("\nAgain: --steps slots-1b\n")
    assert contact.run(["--folder", str(tmp_path), "--steps", "car"]) == 0
    with pytest.raises(SystemExit):
        contact.run(["--folder", str(tmp_path), "--steps", "nothing"])


def test_what_a_step_prints_is_looked_at(tmp_path: Path) -> None:
    skipped = python("step", "print('SKIPPED [3] no card')", check=contact.nothing_skipped)
    assert contact.run_step(skipped, tmp_path, 600).problem == "tests were skipped"
    other = python("step", 'print(\'{"vram_planned": 5, "vram_used": 6}\')', check=contact.planned_is_used)
    assert contact.run_step(other, tmp_path, 600).problem == "planned 5 bytes, used 6"
    whole = python("step", "print('{\"ffn_device_share\": 0.0}')", check=contact.is_split)
    said = contact.run_step(whole, tmp_path, 600).problem
    assert said == "no layer is split: 0% of the neurons are on the device"
    neurons = '{"name": "neurons on the device", "planned": 1.0, "measured": 1.0}'
    sides = python("step", f"print('{{\"run\": [{neurons}]}}')", check=contact.sides_work)
    assert "no layer is split: 100%" in contact.run_step(sides, tmp_path, 600).problem
    row = '{"name": "graphs, beside it", "planned": 5, "measured": 6}'
    more = python("step", f"print('{{\"run\": [{row}]}}')", check=contact.graphs_as_assumed)
    assert contact.run_step(more, tmp_path, 600).problem == "graphs take 6 bytes, plans leave 5"
    spilled = python("step", "print('local memory (none is right): 8')", check=contact.no_spills)
    assert contact.run_step(spilled, tmp_path, 600).problem == "kernels spill"
    words = python("step", "print('a warning'); print('{}')", check=contact.planned_is_used)
    assert "not as expected" in contact.run_step(words, tmp_path, 600).problem


def test_the_split_of_the_bundled_model_is_one() -> None:
    command = contact.hotcold("offload-dump", "--json", "--device-memory", "8GiB", *contact.SPLIT)
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    layers = json.loads(printed)["layers"]
    assert layers and all(0 < layer["hot_share"] < 1 for layer in layers)


def test_the_7b_model_has_about_half_of_its_neurons_on_the_card() -> None:
    """As bench/gpu.py plans it: 512 positions, batches of 64, predictors of a quarter of the embeddings."""
    source = open_source(None, "relullama-7b:q4_0", 1024)
    how = wanted(source, "predictor", 512, 64, "f16", stream_batch=None)

    def plan(n_bytes: int) -> Plan:
        return make_plan(source, how, Budget("a test", n_bytes, "a test", DeviceFacts("a card", 1 << 37)))

    *_, step = contact.steps_of_a_card("cuda:0", 1)
    share, everything = step.command[-2:]
    used = plan(1 << 36).totals.used
    assert everything == "all" and 0.4 < plan(int(used * float(share[:-1]) / 100)).hot_share < 0.6


def test_what_cannot_run_is_left_out(tmp_path: Path) -> None:
    missing = python("step", "print(1)", needs="no-such-program")
    assert contact.run_step(missing, tmp_path, 600).problem == "left out: no no-such-program"
    assert "want of time" in contact.run_step(python("step", "print(1)"), tmp_path, 0).problem


@pytest.mark.slow
def test_neighbours_run_beside_each_other_in_their_order(tmp_path: Path) -> None:
    slow, quick = "import time; time.sleep(2)", "print(1)"
    steps = [
        python("first", quick),
        *(python(f"{i}", slow, beside=True) for i in range(4)),
        python("last", quick),
    ]
    started = time.perf_counter()
    found = list(contact.run_steps(steps, tmp_path, started + 600))
    assert [each.step.name for each in found] == ["first", "0", "1", "2", "3", "last"]
    assert time.perf_counter() - started < sum(each.seconds for each in found) - 2


def test_a_card_is_filled_that_does_not_give_all_in_one_piece() -> None:
    class Stingy:
        free, most = 10 << 30, 3 << 30

        def memory(self) -> tuple[int, int]:
            return self.free, 16 << 30

        def empty(self, n_bytes: int, dtype: str) -> None:
            if n_bytes > min(self.most, self.free - (32 << 20)):
                raise DoesNotFitError("device memory", n_bytes, "less", "ask for less")
            self.free -= n_bytes

    device = Stingy()
    trouble.fill(cast(Device, device))
    assert trouble.LEFT <= device.free < trouble.LEFT + 2 * trouble.SMALLEST


def test_what_is_told_of_a_card_in_trouble(compiler: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert trouble.run(["--device", "emulated"]) == 0
    assert "a failed kernel: kernel add" in capsys.readouterr().out

    def beside(code: int, device: str, said: str) -> str:
        return trouble.taken_over(CompletedProcess((), code, json.dumps({"device": device}), said))

    assert beside(0, "cpu", "warning: cuda:0 is not used: full") == ""
    assert beside(1, "cpu", "") == "exit code 1"
    assert beside(0, "cuda:0", "cuda:0") == "the text is from cuda:0"
    assert beside(0, "cpu", "") == "nothing is said"


@pytest.mark.parametrize("visible, name", [(None, "1"), ("", "1"), ("3,5", "5")])
def test_the_card_that_is_full_is_the_one_that_another_sees(
    visible: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert trouble.name_of_card(1) == name


def test_other_ids_than_the_cpus_are_seen() -> None:
    def text(name: str, ids: list[int]) -> Outcome:
        return Outcome(Step(name, (), 1), 1.0, "", json.dumps({"ids": ids}))

    cpu, device, split = text("text-cpu", [1, 2]), text("text-device", [1, 2]), text("text-split", [1, 3])
    assert contact.compared([device, cpu]) == ("One text: device, cpu.", True)
    assert contact.compared([device, cpu, split]) == ("Other ids than cpu: split.", False)
    assert contact.compared([device, split]) == ("Other ids than device: split.", False)


def test_nothing_is_said_of_texts_that_are_not_there() -> None:
    text = Step("text-device", (), 1)
    failed, well = Outcome(text, 1.0, "exit code 5", "an error"), Outcome(text, 1.0, "", '{"ids": [1]}')
    assert contact.compared([]) == contact.compared([failed]) == contact.compared([well]) == ("", True)


def test_what_goes_wrong_with_a_figure_leaves_the_others(
    compiler: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(device: Device, repeats: int) -> NoReturn:
        raise RuntimeError("the host passes too early")

    monkeypatch.setattr(launches, "forked", early)
    monkeypatch.setattr(launches, "alone", lambda device, repeats: iter(()))
    assert launches.run(["--device", "emulated", "--repeats", "1"]) == 1
    shown = capsys.readouterr().out
    assert "in a graph |" in shown and "bytes of device memory" in shown
    assert shown.endswith("\nwrong: the host passes too early\n")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_launches_are_timed_through_the_cuda_driver() -> None:
    cupy = StubCupy(EmulatedDriver())
    with Device(CudaDriver(cupy=cupy, libcuda=cupy.libcuda)) as device:
        found = [each for section in launches.sections(device, 1) for each in section]
        assert launches.graph_node_bytes(device) == 0
        assert isinstance(device.driver, CudaDriver) and device.driver.local_bytes("add") == 0
    assert len(found) == 8 and all(0 < each.host <= each.done for each in found)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_all_steps_without_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = "text", "sides", "slots"
    assert contact.run(["--device", "emulated", "--folder", str(tmp_path), "--steps", *steps]) == 0
    shown = capsys.readouterr().out
    assert "One text: cpu, device, split." in shown and "| 4 | " in shown


@pytest.mark.slow
def test_units_are_compiled_by_several_processes() -> None:
    pytest.importorskip("nvidia.cuda_nvrtc")
    assert compile_units.compile_units(90, [1, 2], 2) == []
    assert build_code(all_units()[1].source, 90).stat().st_size > 0
    assert len(compile_units.compile_units(50, [1], 1)) == 1
