"""bench/contact.py and bench/launches.py do what they say, before anyone has a card for eight minutes."""

import json
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess

import contact
import launches
import pytest
import trouble
from contact import Outcome, Step
from stub_cupy import StubCupy

from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver


def python(name: str, program: str, seconds: float = 60.0, **more: object) -> Step:
    return Step(name, (sys.executable, "-c", program), seconds, **more)  # type: ignore[arg-type]


def test_every_file_and_bench_that_a_step_names_is_there() -> None:
    steps = list(contact.steps_of_a_card("cuda:0", 2.5))
    named = [Path(word) for step in steps for word in step.command if word.endswith(".py")]
    assert len(named) > 20 and all(path.is_file() for path in named)
    assert len({step.name for step in steps}) == len(steps)


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


def test_what_a_step_prints_is_looked_at(tmp_path: Path) -> None:
    skipped = python("step", "print('SKIPPED [3] no card')", check=contact.nothing_skipped)
    assert contact.run_step(skipped, tmp_path, 600).problem == "tests were skipped"
    other = python("step", 'print(\'{"vram_planned": 5, "vram_used": 6}\')', check=contact.planned_is_used)
    assert contact.run_step(other, tmp_path, 600).problem == "planned 5 bytes, used 6"
    row = '{"name": "graphs, beside it", "planned": 5, "measured": 6}'
    more = python("step", f"print('{{\"run\": [{row}]}}')", check=contact.graphs_as_assumed)
    assert contact.run_step(more, tmp_path, 600).problem == "graphs take 6 bytes, plans leave 5"
    spilled = python("step", "print('local memory (none is right): 8')", check=contact.no_spills)
    assert contact.run_step(spilled, tmp_path, 600).problem == "kernels spill"


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


def test_what_is_told_of_a_card_in_trouble(compiler: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert trouble.run(["--device", "emulated"]) == 0
    assert "a failed kernel: kernel add" in capsys.readouterr().out

    def beside(code: int, device: str, said: str) -> str:
        return trouble.taken_over(CompletedProcess((), code, json.dumps({"device": device}), said))

    assert beside(0, "cpu", "warning: cuda:0 is not used: full") == ""
    assert beside(1, "cpu", "") == "exit code 1"
    assert beside(0, "cuda:0", "cuda:0") == "the text is from cuda:0"
    assert beside(0, "cpu", "") == "nothing is said"


def test_other_ids_than_the_cpus_are_seen() -> None:
    def text(name: str, ids: list[int]) -> Outcome:
        return Outcome(Step(name, (), 1), 1.0, "", json.dumps({"ids": ids}))

    alike = [text("text-cpu", [1, 2]), text("text-device", [1, 2])]
    assert contact.ids_differ(alike) == ""
    assert "text-split" in contact.ids_differ([*alike, text("text-split", [1, 3])])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_launches_are_timed_through_the_cuda_driver() -> None:
    cupy = StubCupy(EmulatedDriver())
    with Device(CudaDriver(cupy=cupy, libcuda=cupy.libcuda)) as device:
        found = list(launches.costs(device, 1))
        assert launches.graph_node_bytes(device) == 0
        assert isinstance(device.driver, CudaDriver) and device.driver.local_bytes("add") == 0
    assert len(found) == 8 and all(0 < each.host <= each.done for each in found)
