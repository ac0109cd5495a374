"""The package as a library: what README promises of `load`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hotcold
from hotcold import Engine, load
from hotcold.errors import DeviceError, DoesNotFitError, FileError, SettingError
from hotcold.gguf_io.convert.conversion import convert

TINY = Path(__file__).parent.parent / "models" / "tiny-relu-llama"
REFERENCE = json.loads((TINY / "reference.json").read_text())
PROMPT = "It is a truth universally acknowledged"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load(threads=1) as engine:
        yield engine


def test_import_is_quick() -> None:
    """Nothing heavy is imported before it is needed."""
    code = "import sys, hotcold; print([m for m in ('numpy', 'numba', 'gguf', 'rich', 'cupy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_cpu_alone_imports_nothing_of_cuda() -> None:
    code = (
        "import sys, hotcold\nfrom hotcold.engine.host import machine\nmachine.has_cuda_driver = lambda: False\n"
        "for options in ({'device': 'cpu'}, {'vram_budget': 0}, {'device': 'auto'}):\n"
        "    with hotcold.load(threads=1, **options) as engine: engine.logits([1])\n"
        "print([m for m in sys.modules if m.startswith(('hotcold.kernels.cuda', 'cupy'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_names() -> None:
    assert hotcold.__version__.count(".") >= 1
    assert {"load", "Engine", "__version__"} <= set(dir(hotcold))
    with pytest.raises(AttributeError, match="nothing"):
        hotcold.nothing  # noqa: B018


def test_rooms_offer_what_readme_names(engine: Engine) -> None:
    from hotcold.engine import generation
    from hotcold.engine.chat import Chat
    from hotcold.engine.generation import Engine as of_its_room
    from hotcold.engine.tokenizer import load_tokenizer

    assert of_its_room is Engine and generation.load is load
    assert load_tokenizer(engine.file).encode("Once") == engine.tokenizer.encode("Once")
    assert Chat.__name__ == "Chat"
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = generation.Motor


def test_defaults_are_the_bundled_model(engine: Engine) -> None:
    assert engine.n_ctx == engine.model.n_ctx_train == 512
    assert engine.n_batch == 512
    assert engine.sparsity == "predictor"
    assert engine.warnings == ()


def test_logits(engine: Engine) -> None:
    logits = engine.logits([1, 270, 265])
    assert logits.shape == (3, engine.model.n_vocab)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(
        engine.logits(np.array([1, 270, 265]))[:2], engine.logits([1, 270, 265])[:2]
    )


def test_greedy_text_follows_the_logits(engine: Engine) -> None:
    generation = engine.generate(PROMPT, 24, temp=0.0, repeat_penalty=1.0)
    text = "".join(generation)
    ids = generation.prompt_ids + generation.ids
    choices = engine.logits(ids).argmax(1)
    assert generation.ids == choices[len(generation.prompt_ids) - 1 : -1].tolist()
    assert text.encode() == b"".join(engine.tokenizer.piece(token) for token in generation.ids)
    assert len(text) > 24


@pytest.fixture(scope="module", params=["f32", "f16"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / f"{request.param}.gguf"
    convert(TINY, None, path, request.param)
    return path


@pytest.mark.parametrize("sparsity", ["off", "exact"])
def test_choices_are_the_references(converted: Path, sparsity: str) -> None:
    """Fed the reference's ids, wherever its best two logits are more than 0.02 apart."""
    with load(converted, sparsity=sparsity) as engine:
        assert engine.sparsity == sparsity
        for case in REFERENCE["greedy"]:
            start, ids = len(case["prompt_ids"]), np.array(case["prompt_ids"] + case["ids"])
            assert engine.tokenizer.encode(case["prompt"]) == case["prompt_ids"]
            clear = np.array(case["gaps"]) > 0.02
            assert clear.sum() > len(clear) / 2
            choices = engine.logits(ids).argmax(1)[start - 1 : -1]
            np.testing.assert_array_equal(choices[clear], ids[start:][clear])


def test_same_seed_same_text(engine: Engine) -> None:
    texts = ["".join(engine.generate(PROMPT, 20, seed=seed)) for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_a_context_that_is_too_long_warns_and_runs() -> None:
    with load(n_ctx=600, threads=1) as engine:
        assert engine.n_ctx == 600
        assert ["600" in warning and "512" in warning for warning in engine.warnings] == [True]
        generation = engine.generate(PROMPT, -1, temp=0.0, ignore_eos=True)
        assert "".join(generation)
        assert generation.statistics.n_prompt + generation.statistics.n_generated == 600
        assert generation.statistics.stop_reason == "context"


def test_batch_is_clamped_and_slices_change_no_logits(converted: Path, engine: Engine) -> None:
    ids = engine.tokenizer.encode(PROMPT)[:8]
    with load(converted, n_ctx=32, n_batch=3, kv_type="f32") as sliced:
        assert sliced.n_batch == 3
        a = sliced.logits(ids)
    with load(converted, n_ctx=8, kv_type="f32") as whole:
        assert whole.n_batch == 8
        b = whole.logits(ids)
    assert np.sqrt(((a - b) ** 2).sum() / (b**2).sum()) < 1e-5


def test_threshold_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold that no predictor output meets leaves attention alone: other logits."""
    with load(threads=1) as engine:
        usual = engine.logits([1, 270])
    with load(threads=1, sparse_pred_threshold=1e30) as engine:
        assert engine.model.sparse_threshold == 1e30
        by_flag = engine.logits([1, 270])
    monkeypatch.setenv("LLAMA_SPARSE_PRED_THRESHOLD", "1e30")
    with load(threads=1) as engine:
        by_environment = engine.logits([1, 270])
    np.testing.assert_array_equal(by_flag, by_environment)
    assert not np.allclose(usual, by_flag)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"path": "/no/such/file.gguf"}, FileError, "/no/such/file.gguf"),
        ({"n_ctx": 0}, SettingError, "n_ctx: 0"),
        ({"n_batch": -1}, SettingError, "n_batch: -1"),
        ({"threads": 0}, SettingError, "threads: 0"),
        ({"kv_type": "q4_0"}, SettingError, "kv_type: q4_0"),
        ({"sparsity": "yes"}, SettingError, "sparsity: yes"),
        ({"device": "tpu"}, SettingError, "device: tpu"),
        ({"device": "cpu", "vram_budget": "6G"}, DeviceError, "device cpu has no VRAM"),
        ({"vram_budget": "6G"}, DeviceError, "vram_budget: 6G"),
        (
            {"sparsity": "exact", "sparse_pred_threshold": 0.5},
            SettingError,
            "sparse_pred_threshold: 0.5",
        ),
        ({"sparse_pred_threshold": float("nan")}, SettingError, "sparse_pred_threshold: nan"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load(**options)


def test_a_prompt_longer_than_the_context() -> None:
    with load(n_ctx=4, threads=1) as engine, pytest.raises(DoesNotFitError, match="prompt: .* holds 4"):
        engine.generate(PROMPT)


def test_a_kv_cache_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 layers, keys and values of 4 heads of 32 halves: 3072 bytes a position, in blocks of 64."""
    monkeypatch.setattr("hotcold.engine.host.machine.physical_memory", lambda *_: 3072 * 128)
    load(n_ctx=128, threads=1).close()
    with pytest.raises(DoesNotFitError, match="KV cache of n_ctx 129: .*n_ctx"):
        load(n_ctx=129, threads=1)


def test_an_empty_file_and_a_directory_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(FileError, match=r"empty\.gguf"):
        load(tmp_path)
    (tmp_path / "empty.gguf").unlink()
    with pytest.raises(FileError, match="this has 0"):
        load(tmp_path)
