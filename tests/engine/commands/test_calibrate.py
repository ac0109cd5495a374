"""`hotcold calibrate`: a curve, thresholds in a file of their own, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from threshold_models import model_file

from hotcold import load
from hotcold.engine.calibrate.curve import divided
from hotcold.engine.measure import perplexity
from hotcold.engine.model.calibration import read_calibration
from hotcold.engine.profile.corpus import Text, chunks
from hotcold.gguf_io import open_gguf

OPTIONS = ("-c", "32", "-b", "16")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Ids of the test models' pieces, some more often than others."""
    path, random = tmp_path / "text.txt", np.random.default_rng(1)
    path.write_text("".join(chr(0x4E00 + i) for i in np.minimum(random.geometric(0.1, 400), 36)))
    return path


@pytest.fixture
def silu(tmp_path: Path) -> Path:
    return model_file(tmp_path, "llama")[0]


def test_thresholds_are_kept_and_used(silu: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibrated.gguf"
    command = ("calibrate", "-m", str(silu), "-f", str(text), *OPTIONS, "--curve", "--cost", "50")
    shown = run(*command, "--outfile", str(out))
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()[1:-1]]
    assert [row[0] for row in rows] == ["0%", "1%", "2%", "3%", "5%", "8%", "12%", "20%", "30%"]
    computed, read = ([float(row[i].rstrip("%")) for row in rows] for i in (1, 2))
    assert computed == sorted(computed, reverse=True) and computed[0] == 100 and computed[-1] < 80
    assert read == sorted(read, reverse=True) and read[0] == pytest.approx(1, abs=0.02) and read[-1] < 0.9
    with open_gguf(out) as file, open_gguf(silu) as source:
        kept = read_calibration(file)
        assert kept is not None and kept.left_out == pytest.approx(0.3) and kept.cost < 0.5
        assert [*file.tensors] == [*source.tensors, "blk.0.ffn_threshold", "blk.1.ffn_threshold"]
        assert all((file.data(name) == source.data(name)).all() for name in source.tensors)
    said = run("generate", "-m", str(out), "-p", "\u4e05", "-n", "4", "-c", "32", "--sparsity", "threshold")
    assert said.returncode == 0 and "leaves out 30.0% of what all add" in said.stderr
    assert f"{kept.perplexity:.2f} out of {kept.perplexity_of_all:.2f}" in said.stderr
    plain = run("generate", "-m", str(out), "-p", "\u4e05", "-n", "4", "-c", "32", "-v")
    assert "sparsity off" in plain.stderr and "leaves out" not in plain.stderr
    assert run(*command, "--outfile", str(out)).returncode == 2  # it is there
    again = tmp_path / "again.gguf"
    for outtype, stays in (("f32", True), ("bf16", False)):
        said = run("convert", str(out), "--outfile", str(again), "--outtype", outtype, "--force")
        assert said.returncode == 0 and ("calibrate the new file" in said.stderr) is not stays
        with open_gguf(again) as file:
            assert (read_calibration(file) is not None) is stays and "blk.1.ffn_threshold" in file.tensors


def test_a_perplexity_that_no_float_holds_is_infinite(silu: Path, text: Path) -> None:
    """Of a model that is sure, and wrong."""
    with open_gguf(silu) as file:
        norm = file.tensors["output_norm.weight"]
    data = bytearray(silu.read_bytes())
    numbers = np.frombuffer(data, np.float32, norm.n_bytes // 4, norm.offset)
    numbers *= np.float32(1e5)
    silu.write_bytes(data)
    said = run("generate", "-m", str(silu), "-f", str(text), "-n", "1", "-c", "512", "-t", "1")
    assert said.returncode == 0 and "no likelier than chance (perplexity inf)" in said.stderr
    command = ("perplexity", "-m", str(silu), "-f", str(text), "-c", "64")
    assert "perplexity inf +/- " in run(*command).stdout
    assert json.loads(run(*command, "--json").stdout)["value"] is None
    said = run("calibrate", "-m", str(silu), "-f", str(text), *OPTIONS)
    assert said.returncode == 3 and "perplexity: infinite" in said.stderr


def test_the_json_has_the_curve_and_nothing_is_written(silu: Path, text: Path) -> None:
    shown = run("calibrate", "-m", str(silu), "-f", str(text), *OPTIONS, "--json", "--cost", "900")
    assert "name a file with --outfile" in shown.stderr
    report = json.loads(shown.stdout)
    assert report["kept"] == 0.3
    assert {*report["points"][3]} == {
        *("left_out", "computed", "perplexity", "perplexity_of_all", "deviation", "ffn_bytes", "cost")
    }


def test_the_measured_perplexity_is_that_of_the_file(silu: Path, text: Path, tmp_path: Path) -> None:
    """The thresholds that are kept are those that were measured, though another level was measured later."""
    out = tmp_path / "calibrated.gguf"
    command = ("calibrate", "-m", str(silu), "-f", str(text), *OPTIONS, "--json")
    whole = json.loads(run(*command, "--cost", "900").stdout)["points"]
    cost = 100 * (whole[4]["cost"] + 1e-6)
    report = json.loads(run(*command, "--curve", "--cost", f"{cost}", "--outfile", str(out)).stdout)
    kept = next(point for point in report["points"] if point["left_out"] == report["kept"])
    with load(out, n_ctx=32, n_batch=16, sparsity="threshold") as engine:
        found = read_calibration(engine.file)
        cut = chunks([Text("", text.read_bytes())], engine.tokenizer, 32)
        measured = perplexity.of_chunks(engine, divided(cut, 32)[1])
    assert found is not None and found.perplexity == pytest.approx(kept["perplexity"])
    assert measured.value == pytest.approx(kept["perplexity"])
    assert measured.activity.shares(engine.model.n_ff)[1] == pytest.approx(kept["computed"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--cost", "0"), 2, "--cost: 0"),
        (("--cost", "nan"), 2, "--cost: nan"),
        (("-c", "512"), 3, "at least 4 chunks of 512"),
        (("--ffn-activation", "relu"), 2, "use exact, which costs nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(
    silu: Path, text: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    shown = run("calibrate", "-m", str(silu), "-f", str(text), "-b", "16", *arguments)
    assert shown.returncode == code and words in shown.stderr, shown.stderr


def test_models_that_cannot_have_thresholds_are_refused(text: Path, tmp_path: Path) -> None:
    wrong, _ = model_file(tmp_path, "llama", sparse_layout=False)
    shown = run("calibrate", "-m", str(wrong), "-f", str(text), *OPTIONS)
    assert shown.returncode == 2 and "convert --sparse-layout" in shown.stderr
    (tmp_path / "other").mkdir()
    ungated, _ = model_file(tmp_path / "other", "falcon-7b", sparse_layout=True)
    shown = run("calibrate", "-m", str(ungated), "-f", str(text), *OPTIONS)
    assert shown.returncode == 2 and "no gate to look at first" in shown.stderr
    shown = run("calibrate", "-f", str(text), *OPTIONS)
    assert shown.returncode == 2 and "the FFN is ReLU" in shown.stderr


def test_threshold_without_calibration_is_refused(silu: Path) -> None:
    shown = run("generate", "-m", str(silu), "-p", "\u4e05", "-n", "2", "--sparsity", "threshold")
    assert (
        shown.returncode == 2 and "no thresholds); measure them first with hotcold calibrate" in shown.stderr
    )
    assert run("generate", "-m", str(silu), "-p", "\u4e05", "-n", "2").returncode == 0
