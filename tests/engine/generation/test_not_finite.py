"""Models that compute NaN or infinity: a cache that could not hold a key or value is named, with the one that can."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold import load
from hotcold.engine.generation import Engine
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


@pytest.mark.sample(5)
@pytest.mark.parametrize(("kv_type", "factor"), [("f16", 1e6), ("q8_0", 1e8)])
@pytest.mark.parametrize("role", ["attn_k", "attn_v"])
@pytest.mark.parametrize("device", [{}, {"device": "emulated", "vram_budget": "64MiB", "n_batch": 16}])
def test_the_layer_is_named_wherever_its_cache_is(
    tiny_model: TinyModel, tmp_path: Path, kv_type: str, factor: float, role: str, device: dict[str, Any]
) -> None:
    path = scaled(tiny_model("f32", True), tmp_path / "large.gguf", **{role: factor})
    with load(path, n_ctx=64, threads=1, kv_type=kv_type, **device) as engine:
        if device:
            assert any(cache.side == "gpu" for cache in engine.executor.plan.caches)
        with pytest.raises(SettingError, match=rf"kv_type: {kv_type} .* layer 1 is above .*--kv-type f32"):
            list(engine.generate("Mr. Darcy looked", 2, temp=0.0))


@pytest.mark.sample(3)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("device", [{}, {"device": "emulated", "vram_budget": "64MiB", "n_batch": 16}])
def test_a_key_that_hides_its_position_is_said(
    tiny_model: TinyModel, kv_type: str, device: dict[str, Any]
) -> None:
    """A score of minus infinity gives no NaN: the position is left out, and the text goes on."""
    with load(tiny_model("f32", True), n_ctx=256, threads=1, kv_type=kv_type, **device) as engine:
        list(generation := engine.generate("Mr. Darcy looked", 2, temp=0.0))
        assert not generation.findings
        make_infinite(engine, layer=2, position=len(generation.prompt_ids))
        (said,) = generation.findings
        assert f"a key of layer 2 is too large for a {kv_type} cache" in said
        list(again := engine.generate([1, 5], 1, temp=0.0))
        assert not again.findings  # its positions are others


def make_infinite(engine: Engine, layer: int, position: int) -> None:
    """Put minus infinity in the place of a key's number or scale, in head 1."""
    plan, model = engine.executor.plan, engine.model
    store = next(iter(engine.executor.stores), None)
    if store is not None:
        assert plan.caches[layer].side == "gpu"
        keys, _ = (buffer.array for buffer in store.cache(layer))
        at = plan.n_ctx + position
        if plan.kv_type == "q8_0":
            keys[model.n_head_kv * plan.n_ctx * model.head_dim :].view(np.float16)[at] = -np.inf
        else:
            keys[at * model.head_dim] = -np.inf
        return
    cache = engine.executor.host._kv_cache
    heads = cache.memory.view(np.float16).reshape(model.n_layer, 2, model.n_head_kv, -1)
    heads[layer, 0, 1, position] = -np.inf  # the first number's, or scale's, of 64 positions


def test_a_perplexity_of_such_a_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    path = scaled(tiny_model("f32", False), tmp_path / "large.gguf", attn_v=1e7, attn_output=1e-7)
    with load(path, n_ctx=32, threads=1) as engine, pytest.raises(SettingError, match="--kv-type f32"):
        measure(engine, b"Elizabeth was so much caught by what passed. " * 8)


@pytest.mark.parametrize(("kv_type", "chunk"), [("f16", 0), ("f16", 1), ("q8_0", 1), ("f16", None)])
def test_a_key_that_hides_its_position_of_a_perplexity_is_said(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, kv_type: str, chunk: int | None
) -> None:
    """Whichever chunk it is in, though the next one writes over it."""
    with load(tiny_model("f32", True), n_ctx=64, threads=1, kv_type=kv_type) as engine:
        n_over, run = 0, engine.executor.run

        def spoiled(
            ids: NDArray[np.int32], n_past: int = 0, logits: NDArray[np.float32] | None = None
        ) -> None:
            nonlocal n_over
            run(ids, n_past, logits)
            if n_past + len(ids) == 64:
                if n_over == chunk:
                    make_infinite(engine, layer=2, position=3)
                n_over += 1

        monkeypatch.setattr(engine.executor, "run", spoiled)
        result = measure(engine, b"Elizabeth was so much caught by what passed. " * 16)
        assert n_over >= 2
        said = [f for f in result.findings if f"a key of layer 2 is too large for a {kv_type} cache" in f]
        assert len(said) == (chunk is not None)
        assert all("the perplexity may be wrong" in finding for finding in said)


@pytest.mark.parametrize(("kv_type", "named"), [("f16", True), ("q8_0", True), ("f32", False)])
def test_weights_that_lead_there_by_themselves(
    tiny_model: TinyModel, tmp_path: Path, kv_type: str, named: bool
) -> None:
    path = scaled(tiny_model("f32", False), tmp_path / "nan.gguf", ffn_up=float("nan"))
    with load(path, n_ctx=64, threads=1, kv_type=kv_type) as engine, pytest.raises(FileError) as caught:
        list(engine.generate("Mr. Darcy looked", 2, temp=0.0))
    assert "the model computes NaN (finite logits); the file may be damaged" in str(caught.value)
    assert ("--kv-type f32" in str(caught.value)) == named
