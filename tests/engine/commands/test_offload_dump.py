"""`hotcold offload-dump`: what it prints, how fast, and what it refuses."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from commands import run as run_command
from threshold_models import model_file

from hotcold.engine.device import devices
from hotcold.engine.model.known_shapes import SHAPES

DATA = Path(__file__).parent.parent.parent / "data"
ONE_A_KIND = (
    "relullama-7b",
    "bamboo-7b",
    "falcon-40b",
    "opt-6.7b",
    "qwen2-7b",
    "gemma-3-4b",
    "phi-3-mini",
)

pytestmark = pytest.mark.usefixtures("no_card")
run = partial(run_command, "offload-dump")


@pytest.mark.parametrize(
    "arguments", [(), ("--layer", "0"), pytest.param(("--full",), marks=pytest.mark.slow)]
)
def test_no_line_ends_in_a_space(arguments: tuple[str, ...]) -> None:
    lines = run("--vram-budget", "6MiB", *arguments).stdout.splitlines()
    assert len(lines) > 20 and all(line == line.rstrip() for line in lines)


def test_falcon_40b_is_split_in_seconds() -> None:
    started = time.perf_counter()
    result = run("--like", "falcon-40b:q4_0", "--vram-budget", "8GiB")
    assert result.returncode == 0
    assert time.perf_counter() - started < 10  # two on an idle machine
    assert len(result.stdout.splitlines()) < 120
    assert "Layer 0: 60 layers are alike, 0 to 59" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "name", ["qwen3-30b-a3b:q4_k_m", "llama-3-70b:q4_k_m", "gpt-oss-20b:mxfp4", "gemma-3-27b:q4_0"]
)
@pytest.mark.parametrize("budget", ["0", "12GiB"])
def test_a_glance_has_at_most_80_columns(name: str, budget: str) -> None:
    """Long shapes of experts beside long shares of split ones too."""
    result = run("--like", name, "--vram-budget", budget)
    assert result.returncode == 0 and max(map(len, result.stdout.splitlines())) <= 80
    note = [line for line in result.stderr.splitlines() if "wait for the disk" in line]
    assert not any("0.0 GiB of KV cache" in line for line in note)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("name", "n_layer", "n_ff"),
    [("opt-6.7b", 32, 16384), ("falcon-40b:q4_0", 60, 32768), ("relullama-13b:q4_0", 40, 13824)],
)
def test_full_lists_everything(name: str, n_layer: int, n_ff: int) -> None:
    result = run("--like", name, "--vram-budget", "8GiB", "--full")
    assert result.returncode == 0
    buckets = [line.split("gpu_bucket [")[1] for line in result.stdout.splitlines() if "gpu_bucket [" in line]
    assert f"gpu_idx [{n_ff}, 1, 1, 1]" in result.stdout
    assert len(buckets) == n_layer
    assert all(int(bucket.split(",")[0]) > 0 for bucket in buckets)
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "name", [n if n in ONE_A_KIND else pytest.param(n, marks=pytest.mark.slow) for n in SHAPES]
)
def test_every_known_shape_is_planned(name: str) -> None:
    result = run("--like", name, "--vram-budget", "8GiB", "--json")
    assert result.returncode == 0, result.stderr
    on_gpu = json.loads(result.stdout)["totals"]["gpu"]
    assert on_gpu["budget"] == 8 << 30
    assert on_gpu["weights"] > 0 <= on_gpu["left_over"]
    assert sum(on_gpu.values()) == 2 * on_gpu["budget"]


def test_without_a_card_or_a_budget_everything_is_on_the_cpu() -> None:
    result = run()
    assert result.returncode == 0
    assert "everything runs on the CPU" in result.stdout


def test_the_function_of_a_silent_file_can_be_named(tmp_path: Path) -> None:
    path, _ = model_file(tmp_path, "llama")  # with a row a neuron, and not a word of its function
    assert "sparsity off" in run("-m", str(path)).stdout
    named = run("-m", str(path), "--ffn-activation", "relu")
    assert named.returncode == 0 and "sparsity exact" in named.stdout


def test_json() -> None:
    got = json.loads(run("--json", "--vram-budget", "80%", "--device-memory", "8GiB").stdout)
    assert got["schema_version"] == 1
    assert got["budget"]["bytes"] == int(0.8 * (8 << 30))
    assert got["budget"]["device"]["memory"] == 8 << 30
    assert got["totals"]["coverage"] == 1.0


def test_the_context_stands_outside_the_budget() -> None:
    text = run("--device-memory", "8GiB").stdout
    of_graphs = json.loads(run("--device-memory", "8GiB", "--json").stdout)["budget"]["device"]["graph_bytes"]
    assert of_graphs > 0 and f"{(8 << 30) - (512 << 20) - of_graphs} bytes" in text
    assert "outside the budget: CUDA context" in text
    assert f"outside the budget: graphs, at most {of_graphs} bytes" in text and "assumed" in text


@pytest.mark.parametrize(
    ("n_slots", "held"), [(2, "1 other number of slots"), (8, "2 other numbers of slots")]
)
def test_graphs_of_several_slots_are_told(n_slots: int, held: str) -> None:
    asked = "--device-memory", "8GiB", "--slots", str(n_slots)
    of_graphs = json.loads(run(*asked, "--json").stdout)["budget"]["device"]["graph_bytes"]
    assert f"graphs, of one token and of {held}, at most {of_graphs} bytes" in " ".join(
        run(*asked).stdout.split()
    )


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ("--vram-budget", "much"), "--vram-budget: much"),
        (2, ("--vram-budget", "much"), "; such as --vram-budget 24GiB"),
        (2, ("--vram-budget", "-1"), "--vram-budget: -1"),
        (5, ("--vram-budget", "auto"), "--device-memory"),
        (5, ("--vram-budget", "80%"), "--device-memory"),
        (4, ("--vram-budget", "1KiB"), "the smallest useful plan needs"),
        (2, ("--vram-budget", ""), '--vram-budget: "" (auto, a size'),
        (2, ("--sweep", "1,x"), "--sweep: x (auto, a size"),
        (2, ("--sweep", "1,x"), "or 0); such as --sweep 0,8GiB,80%"),
        (2, ("--like", "opt-30b:"), 'type of --like: "" (behind the colon); such as --like opt-30b:q4_0'),
        (2, ("--tensors", "("), "no regular expression"),
        (2, ("--tensors", "zebra"), "no weight or intermediate"),
        (2, ("--layer", "6"), "--layer: 6 (0 to 5); such as --layer 0"),
        (2, ("--like", "llama-9"), "--like: llama-9 (known, and near it: llama-"),
        (2, ("--like", "zebra"), "--like: zebra (no known model); docs/offload-dump.md lists all"),
        (2, ("--like", "opt-30b", "--predictor-rank", "-1"), "such as --predictor-rank 1024"),
        (2, ("--html", ""), '--html: "" (no path); name one'),
        (2, ("--html", "."), "--html: '' or . (the name of a file); name one"),
        (2, ("--like", "opt-30b", "-m", "x"), "both -m and --like"),
        (2, ("--like", "opt-30b:q9_k"), "type of --like: q9_k (known: f32"),
        (2, ("--run", "--sweep", "0,1"), "both --run and --sweep"),
        (2, ("--sweep", "0,1", "--html", "x.html"), "both --sweep and --html"),
        (2, ("--predictor-rank", "64"), "use --like"),
        (2, ("--like", "opt-30b", "--ffn-activation", "relu"), "does not go with --like"),
        (2, ("--ffn-activation", "silu"), "an FFN of llama can have: relu"),
        (2, ("--host-gbps", "40"), "--host-gbps: 40.0 (changes nothing without --sweep); add --sweep LIST"),
        (2, ("--device-gbps", "3"), "--device-gbps: 3.0 (changes nothing without --sweep)"),
        (2, ("--bus-gbps", "3", "--run"), "--bus-gbps: 3.0 (changes nothing without --sweep)"),
        (2, ("--force",), "--force (changes nothing without --html); add --html FILE"),
        (2, ("--sweep", "0", "--full"), "--full (does not go with --sweep); leave one of them out"),
        (2, ("--sweep", "0", "--layer", "0"), "--layer: 0 (does not go with --sweep)"),
        (2, ("--sweep", "0", "--tensors", "ffn"), "--tensors: ffn (does not go with --sweep)"),
        (2, ("--sweep", "0", "--gpu-index-for", "hotcold"), "--gpu-index-for: hotcold (does not go with"),
        (
            2,
            ("--html", "x.html", "--layer", "0"),
            "--layer: 0 (does not go with --html); leave one of them out",
        ),
        (2, ("--html", "x.html", "--tensors", "ffn"), "--tensors: ffn (does not go with --html)"),
        (2, ("-c", "0"), "-c: 0 (a whole number from 1"),
        (2, ("--batch-size", "0"), "--batch-size: 0 (a whole number from 1"),
        (2, ("--run", "--layer", "99"), "--layer: 99 (does not go with --run)"),
        (2, ("--run", "--disable-gpu-index"), "--disable-gpu-index (does not go with --run)"),
        (
            2,
            ("--reset-gpu-index", "--disable-gpu-index"),
            "--reset-gpu-index (does not go with --disable-gpu-",
        ),
        (3, ("-m", "/nowhere.gguf"), "No such file"),
        (3, ("--html", "/nowhere/x.html"), "--html"),
        (3, ("--activation", "/nowhere"), "no activation_0"),
        (2, ("--gpu-index-for", "llama.cpp", "--vram-budget", "6MiB"), "known: hotcold, powerinfer"),
        (2, ("--like", "opt-30b", "--gpu-index-for", "powerinfer", "--vram-budget", "16"), "name it with -m"),
        (2, ("--sweep", "0,,1"), "--sweep: "),
        (2, ("--sweep", "0,900%", "--device-memory", "1GiB"), "--sweep: 900% (0% to 100%)"),
        (5, ("--sweep", "0,auto"), "--device-memory"),
        (2, ("--sweep", "0", "--bus-gbps", "0"), "--bus-gbps"),
        (
            2,
            ("--sweep", "0", "--host-gbps", "1e-308", "--json"),
            "--host-gbps: 1e-308 (a number from 1e-9 to 1e9)",
        ),
        (2, ("--device-memory", "80%"), "; such as --device-memory 24GiB"),
        (2, ("--sparsity", "some"), "sparsity"),
    ],
)
def test_refusals(code: int, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_sweep_has_a_row_a_budget() -> None:
    result = run("--sweep", "0,1KiB,3MiB,6MiB,12MiB", "-b", "64", "-c", "256", "--json")
    rows = json.loads(result.stdout)["sweep"]
    assert [row["budget"] for row in rows] == ["0", "1KiB", "3MiB", "6MiB", "12MiB"]
    assert "smallest useful plan" in rows[1]["error"]
    covered = [row["coverage"] for row in rows if "error" not in row]
    assert covered == sorted(covered) and covered[-1] == 1.0
    text = run("--sweep", "0,1KiB,6MiB").stdout
    assert "estimate" in text and max(map(len, text.splitlines())) <= 80
    assert (
        run("--sweep", "0,1KiB,6MiB", "--vram-budget", "8GiB").stdout == text
    )  # as docs/own-model.md has it


def test_a_page_is_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    result = run("--vram-budget", "6MiB", "-c", "256", "-b", "64", "--html", str(tmp_path / "x.html"))
    assert result.returncode == 0 and result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.parametrize(
    ("content", "linked"), [("mine", False), ("", False), ("<!DOCTYPE html>older", False), ("mine", True)]
)
def test_a_page_that_is_there_is_overwritten_with_force_alone(
    tmp_path: Path, content: str, linked: bool
) -> None:
    page = tmp_path / "x.html"
    page.write_text(content)
    named = tmp_path / "link.html" if linked else page
    if linked:
        named.symlink_to("x.html")
    wanted = ("--vram-budget", "0", "-c", "64", "--html", str(named))
    result = run(*wanted)
    assert result.returncode == 2 and "--force" in result.stderr and page.read_text() == content
    assert run(*wanted, "--force").returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>\n") and named.is_symlink() == linked


@pytest.mark.parametrize("kind", ["the model", "a link to it", "a pipe", "a directory"])
def test_a_page_takes_the_place_of_nothing_but_a_page(tmp_path: Path, kind: str) -> None:
    model, page = tmp_path / "m.gguf", tmp_path / "page"
    model.write_bytes((DATA / "llamacpp" / "llama.q8_0.gguf").read_bytes())
    before = model.read_bytes()
    if kind == "the model":
        page = model
    elif kind == "a link to it":
        page.symlink_to(model)
    elif kind == "a pipe":
        os.mkfifo(page)
    else:
        page.mkdir()
    was = os.lstat(page)
    result = run("-m", str(model), "--vram-budget", "0", "--html", str(page), "--force")
    assert result.returncode in (2, 3) and str(page) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert os.path.samestat(os.lstat(page), was) and model.read_bytes() == before


@pytest.mark.parametrize(
    ("gib", "arguments", "fits"),
    [
        (24, ("--like", "opt-175b:f16", "--vram-budget", "0"), False),
        (512, ("--like", "opt-175b:f16", "--vram-budget", "0"), True),
        *(
            pytest.param(
                16, ("--like", "falcon-40b:q4_0", "--vram-budget", budget), fits, marks=pytest.mark.slow
            )
            for budget, fits in (("0", False), ("12GiB", True))
        ),
    ],
)
def test_what_the_memory_cannot_hold_is_said(
    gib: int, arguments: tuple[str, ...], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotcold.engine.host.machine.physical_memory", lambda *_: gib << 30)
    result = run(*arguments, "-c", "2048")
    assert result.returncode == 0
    assert ("every token will wait for the disk" in result.stderr) == (not fits)
    assert "disk" not in run(*arguments, "--quiet").stderr


def test_nothing_that_runs_a_model_is_imported() -> None:
    """Numba and CuPy are not imported for it."""
    script = (
        "import sys; from hotcold.cli import app\n"
        "try: app(['offload-dump', '--vram-budget', '6MiB', '-b', '64'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('numba', 'llvmlite', 'cupy')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_counts_are_read_in_the_order_of_numbers(tmp_path: Path) -> None:
    """PowerInfer sorts their names as strings: layer 10 before layer 2."""
    import numpy as np

    shape = {
        "architecture": "llama",
        "n_layer": 12,
        "n_embd": 256,
        "n_ff": 256,
        "n_head": 4,
        "n_head_kv": 4,
        "n_vocab": 10,
        "n_ctx_train": 64,
        "ffn_activation": "relu",
    }
    (tmp_path / "s.json").write_text(json.dumps(shape))
    for i in range(12):
        np.save(tmp_path / f"activation_{i}.npy", np.full(256, 1000 if i == 2 else 1))
    options = ("--like", f"@{tmp_path}/s.json", "--activation", str(tmp_path), "-b", "1", "-c", "8", "--json")
    full = json.loads(run(*options, "--vram-budget", "1GiB").stdout)["totals"]["gpu"]
    dense = full["budget"] - full["left_over"] - full["hot_rows"]
    got = json.loads(run(*options, "--vram-budget", f"{dense + full['hot_rows'] // 12}B").stdout)
    assert [la["layer"] for la in got["layers"] if la["gpu_bucket"][0]] == [2]


def test_a_reader_that_ends_early_is_no_error() -> None:
    command = [sys.executable, "-m", "hotcold", "offload-dump", "--like", "opt-30b", "--vram-budget", "16"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_colours_only_on_a_terminal_and_only_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from hotcold.engine.commands.offload_dump import OffloadDumpCommand

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stdout", stream)
        OffloadDumpCommand(vram_budget="6MiB", n_batch=64, layer=1, quiet=True).run()
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;36m" in shown(Terminal())
    assert "\x1b" not in shown(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "36m" not in shown(Terminal())


def test_a_card_is_asked_for_its_memory_if_a_budget_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    card = devices.DeviceInfo("cuda:0", "a card", usable=True, memory_free=1 << 33, memory_total=3 << 32)
    monkeypatch.setattr(devices, "first_card", lambda: card)
    for arguments in (("--vram-budget", "auto"), ()):
        got = json.loads(run("--json", *arguments).stdout)
        assert got["budget"]["device"]["name"] == "cuda:0"
        of_graphs = got["budget"]["device"]["graph_bytes"]
        assert got["budget"]["bytes"] == (1 << 33) - (64 << 20) - of_graphs
    rows = json.loads(run("--json", "--sweep", "0,50%,auto").stdout)["sweep"]
    assert [row["bytes"] for row in rows] == [0, 3 << 31, (1 << 33) - (64 << 20) - of_graphs]


@pytest.mark.parametrize("kind", ["q4_k_m", "iq4_nl", "iq2_xxs"])
def test_types_with_long_names_stand_apart(kind: str) -> None:
    shown = run("--like", f"llama-3-8b:{kind}", "--full").stdout
    rows = [line for line in shown.splitlines() if line.startswith("blk.") and line.endswith("  cpu")]
    assert len(rows) >= 32 * 6 and len({len(row) for row in rows}) == 1
    assert all(row.split()[2].startswith("[") for row in rows)
