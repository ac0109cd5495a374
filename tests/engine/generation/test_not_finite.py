"""Models that compute NaN or infinity: a cache that could not hold a key or value is named, with the one that can."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hotcold import load
from hotcold.engine.measure.perplexity import measure
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import open_gguf

TinyModel = Callable[[str, bool], Path]


def scaled(source: Path, target: Path, **factors: float) -> Path:
    """The file with weights multiplied, by role, in layer 1."""
    content = bytearray(source.read_bytes())
    with open_gguf(source) as file:
        for role, factor in factors.items():
            info = file.tensors[f"blk.1.{role}.weight"]
            numbers = file.data(info.name).view(np.float32) * np.float32(factor)
            content[info.offset : info.offset + info.n_bytes] = numbers.tobytes()
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("factors", [{"attn_k": 1e6, "attn_q": 1e-6}, {"attn_v": 1e7, "attn_output": 1e-7}])
def test_keys_or_values_that_a_cache_cannot_hold(
    tiny_model: TinyModel, tmp_path: Path, factors: dict[str, float]
) -> None:
    path = scaled(tiny_model("f32", False), tmp_path / "large.gguf", **factors)
    with (
        load(path, n_ctx=64, threads=1) as engine,
        pytest.raises(SettingError, match=r"kv_type: f16 .* layer 1 is above 65504.*--kv-type f32"),
    ):
        list(engine.generate("Mr. Darcy looked", 2, temp=0.0))
    with load(path, n_ctx=64, threads=1, kv_type="f32") as engine:
        got = "".join(engine.generate("Mr. Darcy looked", 8, temp=0.0))
    with load(tiny_model("f32", False), n_ctx=64, threads=1, kv_type="f32") as engine:
        assert got == "".join(engine.generate("Mr. Darcy looked", 8, temp=0.0))


def test_a_perplexity_of_such_a_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    path = scaled(tiny_model("f32", False), tmp_path / "large.gguf", attn_v=1e7, attn_output=1e-7)
    with load(path, n_ctx=32, threads=1) as engine, pytest.raises(SettingError, match="--kv-type f32"):
        measure(engine, b"Elizabeth was so much caught by what passed. " * 8)


@pytest.mark.parametrize(("kv_type", "named"), [("f16", True), ("q8_0", True), ("f32", False)])
def test_weights_that_lead_there_by_themselves(
    tiny_model: TinyModel, tmp_path: Path, kv_type: str, named: bool
) -> None:
    path = scaled(tiny_model("f32", False), tmp_path / "nan.gguf", ffn_up=float("nan"))
    with load(path, n_ctx=64, threads=1, kv_type=kv_type) as engine, pytest.raises(FileError) as caught:
        list(engine.generate("Mr. Darcy looked", 2, temp=0.0))
    assert "the model computes NaN (finite logits); the file may be damaged" in str(caught.value)
    assert ("--kv-type f32" in str(caught.value)) == named
