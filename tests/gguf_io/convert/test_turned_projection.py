"""A GGUF file whose down projection is turned, because its FFN is said to be ReLU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from hotcold import load
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

DATA = Path(__file__).parents[2] / "data"
MakeLlama = Callable[..., Any]  # the fixture llama


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("slab", [4 << 20, 200])
def test_a_file_said_to_be_relu_is_what_its_directory_gives(
    llama: MakeLlama, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outtype: str, slab: int
) -> None:
    """The down projection gets a row a neuron, and the file says what its FFN has."""
    for module in ("requantise", "tensor_plan"):
        monkeypatch.setattr(f"hotcold.gguf_io.convert.{module}.SLAB_ELEMENTS", slab)
    folder = llama(hidden_act="silu").folder
    convert(folder, None, tmp_path / "silent.gguf", "f32")
    convert(folder, None, tmp_path / "wanted.gguf", outtype, ffn_activation="relu")
    summary = convert(tmp_path / "silent.gguf", None, out, outtype, ffn_activation="relu")
    assert summary.sparse and not summary.warnings
    with open_gguf(out) as got, open_gguf(tmp_path / "wanted.gguf") as wanted:
        assert list(got.tensors) == list(wanted.tensors)
        assert "blk.0.ffn_down.weight" not in got.tensors
        assert got.metadata["hotcold.ffn_activation"] == "relu"
        for name, info in wanted.tensors.items():
            assert (got.tensors[name].type, got.tensors[name].ne) == (info.type, info.ne)
            assert np.array_equal(got.data(name), wanted.data(name))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q6_k", "f16"])
def test_a_turned_projection_computes_the_same(kind: str, out: Path) -> None:
    source = DATA / "llamacpp" / f"llama.{kind}.gguf"
    summary = convert(source, None, out, "f32", ffn_activation="relu")
    assert summary.sparse
    assert len(summary.warnings) == (kind != "f16")  # that numbers were rounded already
    ids = [1, 5, 9, 200, 33, 7]
    with load(source, n_ctx=32, ffn_activation="relu", kv_type="f32") as dense:
        wanted = dense.logits(ids)
    for sparsity in ("exact", "off"):
        with load(out, n_ctx=32, sparsity=sparsity, kv_type="f32") as engine:
            got = engine.logits(ids)
        assert engine.sparsity == sparsity
        assert np.abs(got - wanted).max() <= 0.03 * np.abs(wanted).max()  # activations are rounded in one


@pytest.mark.parametrize("activation", [None, "silu"])
def test_no_projection_is_turned_unasked(activation: str | None, out: Path) -> None:
    convert(DATA / "llamacpp" / "llama.f16.gguf", None, out, "f16", ffn_activation=activation)
    with open_gguf(out) as got:
        assert "blk.0.ffn_down.weight" in got.tensors


def test_a_projection_that_cannot_be_read_stays(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the file says so: it runs dense."""
    monkeypatch.setattr(
        "hotcold.gguf_io.convert.requantise._is_readable",
        lambda info: info.type is not GGMLQuantizationType.Q8_0,
    )
    source = DATA / "llamacpp" / "llama.q8_0.gguf"
    summary = convert(source, None, out, "q8_0", ffn_activation="relu")
    assert not summary.sparse
    assert summary.warnings == ("ffn_down stays as it is, since Q8_0 cannot be read: its FFN runs dense",)
    with open_gguf(out) as got, open_gguf(source) as file:
        assert got.data("blk.1.ffn_down.weight").tobytes() == file.data("blk.1.ffn_down.weight").tobytes()
