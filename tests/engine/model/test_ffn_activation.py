"""The function of an FFN that its file does not say: an option, what convert records, a hint by the name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hotcold import load
from hotcold.engine.model.load import load_model
from hotcold.errors import SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

TinyModel = Callable[[str, bool], Path]
TINY = Path(__file__).parents[3] / "models" / "tiny-relu-llama"


@pytest.fixture
def silent(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A ReLU model whose file does not say so."""
    path = tmp_path / "model.gguf"
    content = tiny_model("f16", False).read_bytes().replace(b"tiny-relu-llama", b"tiny-some-llama")
    path.write_bytes(content.replace(b"hotcold.ffn_activation", b"another.ffn_activation"))
    return path


def text(path: Path, **options: str) -> str:
    with load(path, n_ctx=64, threads=1, **options) as engine:  # type: ignore[arg-type]
        return "".join(engine.generate("Mr. Darcy looked", 12, temp=0.0))


def test_an_option_says_it(silent: Path, tiny_model: TinyModel) -> None:
    wanted = text(tiny_model("f16", False))
    assert text(silent) != wanted
    assert text(silent, ffn_activation="relu") == wanted
    assert text(silent, ffn_activation="relu", sparsity="exact") == wanted


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_convert_records_it(silent: Path, tiny_model: TinyModel, tmp_path: Path, outtype: str) -> None:
    out = tmp_path / "out.gguf"
    summary = convert(silent, None, out, outtype, ffn_activation="relu")
    assert summary.sparse
    with open_gguf(out) as file:
        assert load_model(file).ffn_activation == "relu"
    if outtype == "f16":
        assert text(out) == text(tiny_model("f16", False))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_convert_records_it_of_a_directory(tmp_path: Path, activation: str) -> None:
    out = tmp_path / "out.gguf"
    convert(TINY, None, out, "f16", ffn_activation=activation)
    with open_gguf(out) as file:
        model = load_model(file)
    assert model.ffn_activation == activation
    assert (model.layers[0].ffn_down_t is not None) == (activation == "relu")


@pytest.mark.parametrize(
    ("name", "activation", "words"),
    [
        ("llama.f16", "gelu", "llama can have: silu, relu"),
        ("falcon.f16", "silu", "falcon can have: gelu, relu"),
        ("llama.f16", "tanh", "llama can have: silu, relu"),
    ],
)
def test_what_the_architecture_has_not(
    data: Path, tmp_path: Path, name: str, activation: str, words: str
) -> None:
    path = data / "llamacpp" / f"{name}.gguf"
    for attempt in (
        lambda: load(path, ffn_activation=activation),
        lambda: convert(path, None, tmp_path / "out.gguf", "f16", ffn_activation=activation),
    ):
        with pytest.raises(SettingError, match=words):
            attempt()


def test_a_file_of_powerinfer_is_relu(data: Path) -> None:
    path = data / "powerinfer" / "llama-f16.powerinfer.gguf"
    with pytest.raises(SettingError, match="can have: relu"):
        load(path, ffn_activation="silu")


@pytest.mark.parametrize(
    ("file_name", "own_name", "hinted"),
    [
        ("ReluLLaMA-7B.gguf", "tiny-some-llama", True),
        ("model.gguf", "tiny-relu-llama", True),
        ("prosparse-llama-2.gguf", "tiny-some-llama", True),
        ("model.gguf", "tiny-some-llama", False),
    ],
)
def test_a_name_that_speaks_of_relu(silent: Path, file_name: str, own_name: str, hinted: bool) -> None:
    path = silent.with_name(file_name)
    path.write_bytes(silent.read_bytes().replace(b"tiny-some-llama", own_name.encode()))
    with load(path, n_ctx=64, threads=1) as engine:
        assert any("--ffn-activation relu" in warning for warning in engine.warnings) == hinted
    with load(path, n_ctx=64, threads=1, ffn_activation="relu") as engine:
        assert not any("--ffn-activation" in warning for warning in engine.warnings)


def test_a_file_that_says_it_needs_no_hint(tiny_model: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "relu.gguf"
    path.write_bytes(tiny_model("f16", False).read_bytes())
    with load(path, n_ctx=64, threads=1) as engine:
        assert np.all(["ffn-activation" not in warning for warning in engine.warnings])
