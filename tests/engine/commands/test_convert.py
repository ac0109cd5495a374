"""`hotcold convert`: what it writes and what it says."""

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Result
from commands import run as run_command

from hotcold.engine.commands.terminal import progress_bar
from hotcold.gguf_io import open_gguf

TINY = Path(__file__).parent.parent.parent.parent / "models" / "tiny-relu-llama"
PREDICTORS = str(TINY / "predictors.safetensors")


def run(*arguments: str) -> Result:
    return run_command("convert", *arguments)


def test_a_model_with_predictors(tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    result = run(str(TINY), PREDICTORS, "--outfile", str(out), "--outtype", "q8_0")
    assert result.returncode == 0
    assert result.stdout.startswith(f"{out}: ")
    for word in ("tensors", "MB", "llama", "q8_0", "can run sparse"):
        assert word in result.stdout
    assert "hotcold: warning: PowerInfer itself computes NaN" in result.stderr
    assert out.read_bytes() == (TINY / "tiny-relu-llama.q8_0.gguf").read_bytes()


def test_a_model_without_them_is_f16_by_default(tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    assert run(str(TINY), "--outfile", str(out), "-q") == Result(0, "", "")
    with open_gguf(out) as file:
        assert not file.is_powerinfer
        assert file.tensors["blk.0.ffn_down_t.weight"].type.name == "F16"


def test_the_option_may_come_first(tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    assert run("--outfile", str(out), "-q", str(TINY), PREDICTORS).returncode == 0
    with open_gguf(out) as file:
        assert file.is_powerinfer


@pytest.mark.parametrize("size", ["2MB", "1.5MiB", "0.0005"])
def test_parts_of_at_most_so_many_bytes(tmp_path: Path, size: str) -> None:
    """A number without a unit counts GiB."""
    result = run(str(TINY), "--outfile", str(tmp_path / "m.gguf"), "--split-max-size", size)
    made = sorted(tmp_path.iterdir())
    assert result.returncode == 0 and len(made) > 2
    assert f"m-00001-of-{len(made):05}.gguf and {len(made) - 1} more parts" in result.stdout
    with open_gguf(made[-1]) as file:
        assert len(file.parts) == len(made)


@pytest.mark.parametrize("size", ["0", "much", "-1GiB", ""])
def test_sizes_of_parts_that_mean_nothing(tmp_path: Path, size: str) -> None:
    result = run(str(TINY), "--outfile", str(tmp_path / "m.gguf"), "--split-max-size", size)
    assert result.returncode == 2 and result.stderr.startswith("hotcold: error: --split-max-size: ")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    out.write_text("precious")
    result = run(str(TINY), "--outfile", str(out))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("hotcold: error: output file: ")
    assert "--force" in result.stderr
    assert out.read_text() == "precious"
    assert run(str(TINY), "--outfile", str(out), "--force").returncode == 0
    assert out.stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ("MODEL", "--outfile", "OUT", "--outtype", "q3_k_x"), "outtype: q3_k_x (one of f32, f16"),
        (3, ("EMPTY", "--outfile", "OUT"), "config.json"),
        (3, ("/no/such", "--outfile", "OUT"), "/no/such"),
        (3, ("MODEL", "/no/predictors", "--outfile", "OUT"), "/no/predictors"),
    ],
)
def test_errors_are_one_line_and_a_code(
    tmp_path: Path, code: int, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    paths = {"MODEL": str(TINY), "OUT": str(tmp_path / "out.gguf"), "EMPTY": str(tmp_path / "empty")}
    result = run(*(paths.get(word, word) for word in arguments))
    assert result.returncode == code
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("hotcold: error: ")
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_gguf_file_in_another_type(tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    result = run(str(TINY / "tiny-relu-llama.q8_0.gguf"), "--outfile", str(out), "--outtype", "q4_0")
    assert result.returncode == 0
    for word in (f"{out}: ", "69 tensors", "llama", "q4_0", "can run sparse"):
        assert word in result.stdout
    assert "is in Q8_0 already" in result.stderr
    with open_gguf(out) as file:
        assert file.is_powerinfer
        assert file.tensors["blk.0.fc1.weight"].type.name == "Q4_0"


def test_a_dry_run_lists_every_tensor_and_writes_nothing(tmp_path: Path) -> None:
    result = run(
        str(TINY), PREDICTORS, "--outfile", str(tmp_path / "x.gguf"), "--outtype", "q5_k_m", "--dry-run"
    )
    assert result.returncode == 0 and list(tmp_path.iterdir()) == []
    lines = result.stdout.splitlines()
    tensors = [line.split() for line in lines if line.startswith(("blk.", "output", "token_embd"))]
    assert len(tensors) == 69
    assert any(words[0] == "blk.0.fc1.weight" and words[-2] == "Q5_0" for words in tensors)
    assert any("would be written" in line and "69 tensors" in line for line in lines)


def test_an_importance_matrix_of_another_model_is_named(tmp_path: Path) -> None:
    out, model = tmp_path / "x.gguf", TINY / "tiny-relu-llama.q8_0.gguf"
    result = run(str(TINY), "--outfile", str(out), "--outtype", "q4_k_m", "--imatrix", str(model))
    assert result.returncode == 3 and not out.exists()
    assert f"imatrix {model}: no general.type (an importance matrix has imatrix)" in result.stderr


def test_the_outfile_is_needed() -> None:
    result = run(str(TINY))
    assert result.returncode == 2
    assert "--outfile" in result.stderr


def test_rows_that_the_type_does_not_divide_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGMLQuantizationType as T

    from hotcold.gguf_io.convert import conversion
    from hotcold.gguf_io.convert import summary as convert_summary

    names = ("a.weight", "b.weight")

    def summary(*arguments: object, **options: object) -> convert_summary.ConvertSummary:
        return convert_summary.ConvertSummary(
            tmp_path, "llama", 10, (tmp_path,), (), {(T.Q4_0, T.F16): names}, ("mind this",), False
        )

    monkeypatch.setattr(conversion, "convert_with", summary)
    result = run(str(TINY), "--outfile", "x", "--outtype", "q4_0")
    assert "F16, since blocks of Q4_0 do not divide their rows: a.weight, b.weight\n" in result.stdout
    assert "runs dense" in result.stdout
    assert result.stderr == "hotcold: warning: mind this\n"


def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "hotcold",
        "convert",
        str(TINY),
        "--outfile",
        str(tmp_path / "tiny.gguf"),
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as running:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # how Linux tells that the other end has closed
                break
            if not data:
                break
            shown += data
    os.close(ours)
    assert running.returncode == 0
    assert b"16." in shown
    assert b"MB" in shown


def test_no_bar_without_a_terminal() -> None:
    with progress_bar(False) as progress:
        assert progress is None


@pytest.mark.sample(5)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped while it writes: the first bytes of the temporary file are there, the file is not."""
    model = tmp_path / "model"
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("*.gguf", "*.py", "predictors*"))
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import os, sys; from hotcold.gguf_io.convert import summary; from hotcold.cli import main\n"
        "write = summary.write_model\n"
        "def stopped(*arguments, progress=None, **options):\n"
        f"    kill = lambda name, done, total: os.kill(os.getpid(), {int(number)})\n"
        "    return write(*arguments, progress=kill, **options)\n"
        "summary.write_model = stopped\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "convert", str(model), "--outfile", str(out / "tiny.gguf")]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert result.returncode == 128 + number
    assert b"Traceback" not in result.stderr
    assert list(out.iterdir()) == []
