"""A down projection with a row a neuron for models that are not ReLU: the same logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded_files
from commands import run
from expert_files import Tensors, numbers_of, write_mixture
from hf_forward import forward
from numpy.typing import NDArray

from hotcold import load
from hotcold.engine.model.load import load_model
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

MakeModel = Callable[..., Any]  # the fixture hf_model
DATA = Path(__file__).parents[2] / "data" / "llamacpp"
IDS = [1, 5, 9, 200, 33, 7]
FEW_IDS = [1, 30, 4, 7, 39, 30, 2, 11, 0, 25]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.gguf"


def logits(path: Path, ids: list[int], n_batch: int, **how: Any) -> NDArray[np.float32]:
    with load(path, n_ctx=32, n_batch=n_batch, kv_type="f32", **how) as engine:
        assert engine.sparsity == "off"
        assert not [warning for warning in engine.warnings if "nothing uses" in warning]
        return engine.logits(ids)


def error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.sqrt(((got - wanted) ** 2).sum() / (wanted**2).sum()))


@pytest.mark.parametrize(
    ("name", "outtype"),
    [
        ("llama.f32", "f32"),
        ("llama.f16", "f16"),
        ("llama.bf16", "bf16"),
        ("falcon.f16", "f32"),
        ("qwen2.f16", "f32"),
        ("llama.q8_0", "f32"),
    ],
)
def test_a_gguf_computes_the_same(name: str, outtype: str, out: Path) -> None:
    source = recorded_files.find(DATA / f"{name}.gguf", out.parent)
    summary = convert(source, None, out, outtype, sparse_layout=True)
    assert not summary.sparse
    with open_gguf(source) as file, open_gguf(out) as got:
        assert file.metadata.get("hotcold.ffn_activation") == got.metadata.get("hotcold.ffn_activation")
        assert "blk.1.ffn_down.weight" not in got.tensors
        assert got.tensors["blk.1.ffn_down_t.weight"].ne == file.tensors["blk.1.ffn_down.weight"].ne[::-1]
    convert(source, None, out.with_name("plain.gguf"), outtype)
    wanted = logits(out.with_name("plain.gguf"), IDS, 8, device="cpu")
    for n_batch in (1, 8):
        assert error(logits(out, IDS, n_batch, device="cpu"), wanted) < 1e-5


def test_it_runs_on_a_device_too(out: Path) -> None:
    convert(DATA / "llama.f32.gguf", None, out, "f32", sparse_layout=True)
    wanted = logits(DATA / "llama.f32.gguf", IDS, 8, device="cpu")
    for budget in ("1MiB", "64MiB"):
        for n_batch in (1, 8):
            got = logits(out, IDS, n_batch, device="emulated", vram_budget=budget)
            assert error(got, wanted) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma3", "falcon-7b", "mixtral", "qwen2_moe"])
def test_a_directory_computes_the_same(hf_model: MakeModel, out: Path, kind: str) -> None:
    model = hf_model(kind, dtype="float32")
    convert(model.folder, None, out, "f32", sparse_layout=True)
    part = "ffn_down_exps" if kind in ("mixtral", "qwen2_moe") else "ffn_down"
    with open_gguf(out) as got:
        assert f"blk.0.{part}_t.weight" in got.tensors and f"blk.0.{part}.weight" not in got.tensors
    wanted = forward(model, np.array(FEW_IDS, np.int32))
    for n_batch in (1, 16):
        assert error(logits(out, FEW_IDS, n_batch, device="cpu"), wanted) < 1e-5


def test_what_has_the_layout_already_keeps_it(hf_model: MakeModel, out: Path, tmp_path: Path) -> None:
    model = hf_model("llama", dtype="float32", hidden_act="relu")
    convert(model.folder, None, tmp_path / "in.gguf", "f32")
    convert(tmp_path / "in.gguf", None, out, "f32", sparse_layout=True)
    assert out.read_bytes() == (tmp_path / "in.gguf").read_bytes()


def test_a_bias_goes_with_it(hf_model: MakeModel, out: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Of a model that has one, which a file with a row an output names otherwise."""
    from hotcold.gguf_io.convert import model_tensors

    model = hf_model("opt", dtype="float32")
    convert(model.folder, None, tmp_path / "wanted.gguf", "f32")
    monkeypatch.setattr(model_tensors, "by_neuron", lambda rules, experts: rules)
    convert(model.folder, None, tmp_path / "in.gguf", "f32")
    convert(tmp_path / "in.gguf", None, out, "f32", sparse_layout=True)
    with open_gguf(out) as got, open_gguf(tmp_path / "wanted.gguf") as wanted:
        assert list(got.tensors) == list(wanted.tensors)
        for name in wanted.tensors:
            assert np.array_equal(got.data(name), wanted.data(name)), name


@pytest.mark.parametrize("kind", ["q4_0", "q5_1", "q4_k", "q6_k"])
def test_blocks_along_the_other_way_are_refused(kind: str, out: Path) -> None:
    with pytest.raises(
        FileError, match=r"rounded in blocks along the other way.*start from F32, F16, BF16 or"
    ):
        convert(DATA / f"llama.{kind}.gguf", None, out, "f16", sparse_layout=True)
    assert not out.exists()


@pytest.mark.parametrize("name", ["mixtral.f16", "granitemoe.q8_0", "smallthinker.f16"])
def test_experts_get_a_row_a_neuron(name: str, out: Path) -> None:
    """Squares too, as those of the last two; what has the layout keeps it."""
    source, plain = DATA / f"{name}.gguf", out.with_name("plain.gguf")
    convert(source, None, out, "f32", sparse_layout=True)
    convert(source, None, plain, "f32")
    with open_gguf(plain) as file, open_gguf(out) as got:
        before, after = (f.data(f"blk.1.ffn_down_exps{t}.weight") for f, t in ((file, ""), (got, "_t")))
        shape = file.tensors["blk.1.ffn_down_exps.weight"].shape
        turned = after.view(np.float32).reshape(shape[0], shape[2], shape[1]).swapaxes(1, 2)
        assert np.array_equal(turned, before.view(np.float32).reshape(shape))
    results = []
    for path in (plain, out):
        with load(path, n_ctx=32, n_batch=4, kv_type="f32", device="cpu") as engine:
            assert engine.model.unit == ("neuron" if path == out else "expert")
            results.append(engine.logits(IDS))
    assert error(results[1], results[0]) < 1e-5
    convert(out, None, out.with_name("again.gguf"), "f32", sparse_layout=True)
    assert out.with_name("again.gguf").read_bytes() == out.read_bytes()


def test_powerinfers_experts_are_not_turned_back(tmp_path: Path, out: Path) -> None:
    given = numbers_of(DATA / "smallthinker.window5.q4_0.gguf")
    source = write_mixture(tmp_path / "in.gguf", *given, by_neuron=True)
    convert(source, None, out, "f32", sparse_layout=True)
    with open_gguf(source) as file, open_gguf(out) as got:
        assert list(got.tensors) == list(file.tensors)


def test_experts_with_biases_are_refused(hf_model: MakeModel, out: Path, monkeypatch: Any) -> None:
    from hotcold.gguf_io.convert import requantise

    source, name = DATA / "gptoss.mxfp4.gguf", "blk.0.ffn_down_exps"
    for model in (source, hf_model("gpt_oss").folder):
        with pytest.raises(SettingError, match=r"ffn_gate_exps\.bias, and no kernel reads biases of experts"):
            convert(model, None, out, "f16", sparse_layout=True)
        assert not out.exists()
    monkeypatch.setattr(requantise, "_to_turn", lambda *_: {f"{name}.weight": f"{name}_t.weight"})
    convert(source, None, out, "f32")
    with pytest.raises(FileError, match=r"without --sparse-layout"), open_gguf(out) as file:
        load_model(file)


def test_a_mixture_with_one_tensor_an_expert_is_refused(tmp_path: Path, out: Path) -> None:
    architecture, metadata, tensors = numbers_of(DATA / "mixtral.q4_0.gguf")
    alone: Tensors = {}
    for name, numbers in tensors.items():
        stem, is_stacked, _ = name.partition("_exps")
        alone |= {f"{stem}.{e}.weight": n for e, n in enumerate(numbers)} if is_stacked else {name: numbers}
    source = write_mixture(tmp_path / "in.gguf", architecture, metadata, alone, by_neuron=False)
    with pytest.raises(SettingError, match="no ffn_down of its own"):
        convert(source, None, out, "f16", sparse_layout=True)
    assert not out.exists()


def test_the_command(out: Path) -> None:
    given = ("convert", str(DATA / "llama.f16.gguf"), "--outfile", str(out), "--sparse-layout", "--dry-run")
    result = run(*given)
    assert result.returncode == 0 and "blk.0.ffn_down_t.weight" in result.stdout
    assert run(*(given[0], str(DATA / "llama.q4_0.gguf"), *given[2:])).returncode == 3
