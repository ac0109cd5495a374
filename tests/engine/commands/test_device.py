"""The commands with a device: what they say and print, and the exit codes."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copy

import pytest
from commands import Result, process
from commands import run as run_command

from hotcold.engine.device import devices
from hotcold.engine.run import offload
from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver
from hotcold.kernels.cuda.emulator.streams import WorkQueue

SPLIT = ("--device", "emulated", "--vram-budget", "1400KiB")
SMALL = ("-c", "32", "-b", "8")
Run = Callable[..., Result]


@pytest.fixture
def model(data: Path, tmp_path: Path) -> Path:
    copy(data / "powerinfer" / "llama-f16.powerinfer.gguf", tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


@pytest.fixture(scope="session")
def data() -> Path:
    return Path(__file__).parent.parent.parent / "data"


@pytest.fixture
def run(model: Path) -> Run:
    """A command that runs the model, by its name and options."""

    def call(command: str, *options: str, stdin: str = "", **environment: str) -> Result:
        arguments = [command, "-m", str(model), *SMALL, *options]
        return run_command(*arguments, stdin=stdin.encode(), **environment)

    return call


@pytest.fixture
def generate(run: Run) -> Run:
    def call(*options: str, **environment: str) -> Result:
        greedy = ("-p", "ab", "-n", "3", "--temp", "0", "--ignore-eos", "-t", "1")
        return run("generate", *greedy, *options, **environment)

    return call


def error_of(result: Result, code: int) -> str:
    """The one line of an error."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if "compiling" not in line]
    assert line.startswith("hotcold: error: ")
    return line.removeprefix("hotcold: error: ")


@pytest.mark.parametrize("budget", ["300KiB", "1400KiB", "0.002", "4MB", "1%", "auto"])
def test_the_text_is_the_cpus(generate: Run, compiler: str, budget: str) -> None:
    wanted = generate("--device", "cpu", "-q")
    got = generate("--device", "emulated", "--vram-budget", budget, "-q")
    assert (got.stdout, got.stderr, got.returncode) == (wanted.stdout, "", 0)


def test_two_lines_of_statistics_below_80_columns(generate: Run, compiler: str) -> None:
    *_, first, second = generate(*SPLIT).stderr.splitlines()
    assert "prompt tokens" in first and first.endswith("length reached")
    assert second.startswith("hotcold: emulated: VRAM 1.4 of 1.4 MiB; FFN 50%, active ")
    shares = [int(word.strip(",%")) for word in second.split() if "%" in word]
    assert shares[1] + shares[2] in (99, 100, 101)
    assert max(len(first), len(second)) <= 80


def test_a_device_for_checking_says_so(generate: Run, compiler: str) -> None:
    assert f"hotcold: warning: {offload.EMULATED}\n" in generate(*SPLIT).stderr
    assert "emulated" not in generate("--device", "emulated", "--vram-budget", "0").stderr


def test_json(generate: Run, compiler: str) -> None:
    report = json.loads(generate(*SPLIT, "--json").stdout)
    assert report["device"] == "emulated"
    assert 1_300_000 < report["vram_used"] == report["vram_planned"] <= 1400 << 10
    assert report["kernel_launches"] > 60
    assert 0.4 < report["ffn_device_share"] < 0.6 and 0 < report["active_device_share"] < 1
    alone = json.loads(generate("--device", "cpu", "--json").stdout)
    assert alone["ids"] == report["ids"] and alone["device"] == "cpu"
    unused = ("vram_used", "vram_planned", "kernel_launches", "ffn_device_share", "active_device_share")
    assert not any(alone[name] for name in unused)


def test_everything_on_the_device(generate: Run, compiler: str) -> None:
    report = json.loads(generate("--device", "emulated", "--json").stdout)
    assert report["ffn_device_share"] == report["active_device_share"] == 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--device", "nonsense"), 2, "auto, cpu, cuda, cuda:N, emulated, or cards"),
        (("--device", "cuda:x"), 2, "auto, cpu, cuda, cuda:N, emulated, or cards"),
        (("--device", "cpu", "--vram-budget", "1GiB"), 5, "device cpu has no VRAM"),
        (("--vram-budget", "much"), 2, "--vram-budget: much"),
        (("--vram-budget", "-1"), 2, "--vram-budget: -1"),
        (("--device", "emulated", "--vram-budget", "120%"), 2, "120%"),
        (("--device", "emulated", "--vram-budget", "1000GiB"), 4, "emulated has"),
        (("--device", "emulated", "--vram-budget", "50KiB"), 4, "the smallest useful plan needs"),
        (("--device", "emulated", "--vram-budget", "300KiB", "-b", "32", "--strict"), 4, "-b: 32"),
    ],
)
def test_settings_that_cannot_be(
    generate: Run, compiler: str, options: tuple[str, ...], code: int, words: str
) -> None:
    assert words in error_of(generate(*options), code)


@pytest.mark.parametrize("name", ["cuda", "cuda:7"])
def test_a_card_that_is_not_there(generate: Run, name: str) -> None:
    if devices.first_card() is not None and name == "cuda":
        pytest.skip("there is a card")
    assert "; " in error_of(generate("--device", name), 5)


def test_no_card_at_all(generate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotcold.engine.device.devices.open_device", lambda name: None)
    assert generate("--device", "auto").returncode == 0
    assert "hotcold devices" in error_of(generate("--device", "auto", "--strict"), 5)
    assert "leave it out" in error_of(generate("--vram-budget", "1GiB"), 5)


def test_no_compiler(generate: Run) -> None:
    text = error_of(generate("--device", "emulated", CXX="/no/such/compiler"), 5)
    assert "/no/such/compiler" in text and "; " in text


def test_an_index_for_another_model(generate: Run, model: Path, compiler: str) -> None:
    beside = Path(f"{model}.generated.gpuidx")
    beside.write_bytes(b"GGUF" + bytes(64))
    result = generate(*SPLIT)
    assert result.returncode == 0 and f"hotcold: warning: index {beside} is not used: " in result.stderr
    assert "leave out --strict" in error_of(generate(*SPLIT, "--strict"), 3)


def test_a_device_that_vanishes(generate: Run, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = Device.run, 0

    def lost(device: Device, *arguments: object) -> None:
        nonlocal seen
        seen += 1
        if seen >= 30:
            raise DeviceError("cuda:0", "the device is gone", "CUDA failed", "see dmesg")
        run(device, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Device, "run", lost)
    result = generate(*SPLIT)
    assert result.returncode == 5
    assert (
        result.stderr.splitlines()[-1]
        == "hotcold: error: cuda:0: the device is gone (CUDA failed); see dmesg"
    )


@pytest.mark.slow
def test_the_second_of_two_is_lost(generate: Run, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue, seen = EmulatedDriver._enqueue, 0

    def losing(driver: EmulatedDriver, stream: WorkQueue, work: Callable[[], None]) -> None:
        nonlocal seen
        seen += driver.facts.name == "emulated:1"
        if seen == 30:
            driver.streams.drop()
            driver.lost = "a fault of the test"
        enqueue(driver, stream, work)

    monkeypatch.setattr(EmulatedDriver, "_enqueue", losing)
    result = generate("--device", "emulated:0,emulated:1", "--vram-budget", "1400KiB")
    assert result.returncode == 5 and seen >= 30
    lost = "hotcold: error: emulated:1: lost (after a fault of the test); open it again"
    assert result.stderr.splitlines()[-1] == lost


def test_what_is_said_of_several_cards(compiler: str) -> None:
    """Both options' help, and the list of devices."""
    words = " ".join(run_command("generate", "--help", COLUMNS="200").stdout.split())
    assert "cuda:0,cuda:1" in words and "8GB,6GB" in words
    assert "emulated:0 to emulated:7" in run_command("devices", "--json").stdout


@pytest.mark.parametrize("environment", [{}, {"LLAMA_OFFLOAD_DEBUG": "1"}], ids=["-v", "variable"])
def test_where_everything_is(generate: Run, compiler: str, environment: dict[str, str]) -> None:
    text = generate(*SPLIT, *(() if environment else ("-v",)), **environment).stderr
    assert "budget 1400KiB: 1433600 bytes" in text and "2 of 2 layers have their dense part" in text
    assert "% of the neurons are hot" in text and "everything runs on the CPU" not in text


@pytest.mark.sample(5)
@pytest.mark.parametrize("level", ["1", "2", "3"])
def test_debugging(generate: Run, compiler: str, level: str) -> None:
    plain, traced = generate(*SPLIT), generate(*SPLIT, HOTCOLD_DEBUG=level)
    assert traced.stdout == plain.stdout
    lines = [line.split() for line in traced.stderr.splitlines()]
    nodes = [words for words in lines if words[1:2] in (["gpu"], ["cpu"])]
    assert bool(nodes) == (level != "1") and ("graph of 1 token" in traced.stderr) == (level == "3")
    if nodes:
        assert {words[1] for words in nodes} == {"cpu", "gpu"}
        assert any(words[2:] == ["Kcur-1", "mul_mat", "with", "Qcur-1"] for words in nodes)
        assert not any("0.0 us" in " ".join(words[3:5]) for words in nodes)


def test_chat(run: Run, compiler: str, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    options = ("--chat-template", str(tmp_path / "t.jinja"), "-n", "3", "--temp", "0", "-v")
    split = run("chat", *SPLIT, *options, stdin="ab\ncd\n")
    assert split.returncode == 0, split.stderr
    assert split.stdout == run("chat", "--device", "cpu", *options, stdin="ab\ncd\n").stdout
    assert split.stderr.count("hotcold: emulated: VRAM 1.4 of 1.4 MiB") == 2


@pytest.mark.slow
def test_perplexity(run: Run, compiler: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("ab cd ef gh ij kl mn op qr st uv wx yz " * 3)
    options = ("-f", str(tmp_path / "t.txt"), "--kv-type", "f32")
    split = json.loads(run("perplexity", *options, *SPLIT, "--json").stdout)
    alone = json.loads(run("perplexity", *options, "--device", "cpu", "--json").stdout)
    assert split["value"] == pytest.approx(alone["value"], rel=1e-4)
    assert (split["activity"]["of"], alone["activity"]["of"]) == ("cpu", "model")
    assert sum(split["activity"]["listed"]) < sum(alone["activity"]["listed"])
    text = run("perplexity", *options, *SPLIT).stdout
    assert "on the CPU " in text and "MB of weights" not in text


def test_bench(run: Run, compiler: str) -> None:
    options = ("-p", "8", "-n", "2", "-r", "1", *SPLIT)
    report = json.loads(run("bench", *options, "--json").stdout)
    assert report["device"] == "emulated"
    assert [test["bytes_a_token"] for test in report["tests"]] == [0, 0]
    assert "device emulated" in run("bench", *options).stdout


def test_offload_dump_run(run: Run, compiler: str) -> None:
    result = run("offload-dump", "--run", *SPLIT, "--json")
    report = json.loads(result.stdout)
    rows = {row["name"]: row for row in report["run"]}
    assert report["device"] == "emulated" and result.returncode == 0
    for name in ("device memory", "up the bus, a token", "down the bus, a token", "copies, a token"):
        assert rows[name]["measured"] == rows[name]["planned"] > 0, name
    parts = ("the CPU's part", "the CPU waits for the device", "enqueueing and the rest")
    seconds = [rows[f"of a token, {name}"]["measured"] for name in parts]
    assert min(seconds) > 0 and sum(seconds) == pytest.approx(rows["a token"]["measured"])
    assert seconds[1] > seconds[0] > 0  # the emulated device is the slower side
    assert rows["of graphs, a token"]["measured"] > 1
    device, host = (rows[f"the {side}'s part by itself"]["measured"] for side in ("device", "CPU"))
    assert device > host > 0 and 0 <= rows["of the shorter part, beside the other"]["measured"] <= 1
    assert rows["the bus, copies to the device"]["measured"] > 0
    smaller, larger = (rows[f"a token with a budget of {size} MiB"]["planned"] for size in (1.0, 1.7))
    assert 0 < smaller < larger  # here it is the device that a token waits for
    text = run("offload-dump", "--run", *SPLIT).stdout
    assert "on emulated, VRAM budget 1400KiB" in text and "planned" in text and "measured" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--run", "--device", "emulated", "--vram-budget", "50KiB"), 4, "smallest useful plan"),
        (("--device", "emulated", "--vram-budget", "2MiB"), 2, "add --run"),
        (("--run", "--device", "nonsense"), 2, "nonsense"),
    ],
)
def test_offload_dump_run_refuses(
    run: Run, compiler: str, options: tuple[str, ...], code: int, words: str
) -> None:
    assert words in error_of(run("offload-dump", *options), code)


def test_a_shape_does_not_run() -> None:
    result = run_command("offload-dump", "--run", "--like", "falcon-40b:q4_0")
    assert "no weights to run" in error_of(result, 2)


def command(model: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "hotcold",
        "generate",
        "-m",
        str(model),
        *SMALL,
        "-p",
        "ab",
        *SPLIT,
        *options,
    ]


def test_an_interrupt_leaves_nothing_behind(model: Path, compiler: str) -> None:
    options = ("-n", "-1", "-c", "256", "--ignore-eos")
    with subprocess.Popen(
        command(model, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None and running.stdout.read(2)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    lines = err.decode().splitlines()
    assert running.returncode == 130 and "Traceback" not in err.decode()
    assert lines[-2].endswith("interrupted") and "emulated: VRAM" in lines[-1]
    assert sorted(path.name for path in model.parent.iterdir()) == ["m.gguf"]


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("generate", "-p", "ab", "-n", "1"), 0),
        (("bench", "-p", "2", "-n", "1", "-r", "1"), 0),
        (("generate", "-p", "ab " * 100), 4),
    ],
)
def test_an_emulated_run_leaves_no_temporary_files(
    model: Path, tmp_path: Path, compiler: str, arguments: tuple[str, ...], code: int
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    name, *others = arguments
    done = process(name, "-m", str(model), *SMALL, *SPLIT, *others, TMPDIR=str(temporary))
    assert (done.returncode, list(temporary.iterdir())) == (code, []), done.stderr


@pytest.mark.slow
def test_a_bar_while_rows_are_copied(model: Path, compiler: str) -> None:
    """On a terminal: what is copied, and how fast."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(model, "-n", "1"),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ | {"COLUMNS": "120"},
    ) as running:
        os.close(theirs)
        said = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                said += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert running.returncode == 0
    assert b"hot rows to the device" in said and b"GB/s" in said
