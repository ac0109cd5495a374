"""`--force-pretokenizer` on a model with a byte-level BPE vocabulary, and what is said without it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run
from gguf import GGUFValueType
from numpy.typing import NDArray

import hotcold
from hotcold.errors import SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.byte_characters import CHARACTER_OF
from hotcold.gguf_io.writer import (
    Contents,
    MetadataValue,
    OutputTensor,
    array,
    float32,
    string,
    uint32,
    write_gguf,
)

GOLDEN = Path(__file__).parent.parent.parent / "data" / "llamacpp" / "llama.f16.gguf"
PIECES = [*CHARACTER_OF, "Ġ1", "Ġ12", "<|endoftext|>"]
MakeModel = Callable[..., Path]


def tensors_of(path: Path) -> list[OutputTensor]:
    """The tensors of a file, to be written again."""

    def chunks(name: str) -> Callable[[], Iterator[NDArray[Any]]]:
        def read() -> Iterator[NDArray[Any]]:
            with open_gguf(path) as file:
                yield file.data(name).copy()

        return read

    with open_gguf(path) as file:
        return [
            OutputTensor(info.name, info.type, info.ne, info.n_bytes, chunks(info.name))
            for info in file.tensors.values()
        ]


@pytest.fixture
def model(tmp_path: Path) -> MakeModel:
    """The weights of a small model by llama.cpp with another vocabulary."""

    def make(pre: str | None) -> Path:
        kinds: dict[type, Callable[[Any], MetadataValue]] = {int: uint32, float: float32, str: string}
        with open_gguf(GOLDEN) as file:
            kept = {k: kinds[type(v)](v) for k, v in file.metadata.items() if k.startswith("llama.")}
        vocabulary = {
            "model": string("gpt2"),
            "tokens": array([piece.encode() for piece in PIECES], GGUFValueType.STRING),
            "merges": array(["Ġ 1", "Ġ1 2"], GGUFValueType.STRING),
        } | ({} if pre is None else {"pre": string(pre)})
        metadata = kept | {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
        path = tmp_path / "bpe.gguf"
        write_gguf(path, Contents("llama", metadata, tensors_of(GOLDEN)), force=True)
        return path

    return make


def ids_of(*arguments: str) -> tuple[list[int], str]:
    """Ids that `hotcold generate` makes of " 12", and what it says on stderr."""
    options = ["-p", " 12", "-n", "1", "--temp", "0", "--json"]
    result = run("generate", *options, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["prompt_ids"], result.stderr


def test_generate_cuts_words_as_the_file_or_the_option_says(model: MakeModel) -> None:
    path = str(model("gpt-2"))
    assert ids_of("-m", path)[0] == [257]
    assert ids_of("-m", path, "--force-pretokenizer", "smollm")[0] == [*b" 12"]


def test_a_file_without_a_pretokenizer_gives_one_warning(model: MakeModel) -> None:
    path = str(model(None))
    assert ids_of("-m", path)[1].count("tokenizer.ggml.pre is missing") == 1
    assert "tokenizer.ggml.pre" not in ids_of("-m", path, "--force-pretokenizer", "gpt-2")[1]


@pytest.mark.parametrize("command", [["generate", "-p", "a"], ["perplexity", "-f", __file__], ["bench"]])
def test_an_unknown_one_ends_with_3_and_a_bad_option_with_2(model: MakeModel, command: list[str]) -> None:
    arguments = [*command, "-m", str(model("mystery"))]
    result = run(*arguments)
    assert result.returncode == 3
    assert "tokenizer.ggml.pre: mystery (known: default" in result.stderr
    result = run(*arguments, "--force-pretokenizer", "other")
    assert result.returncode == 2
    assert "--force-pretokenizer: other" in result.stderr


def test_perplexity_and_bench_take_the_option(model: MakeModel, tmp_path: Path) -> None:
    path, text = str(model("mystery")), tmp_path / "text.txt"
    text.write_text("1 12 " * 100)
    for command in (["perplexity", "-f", str(text), "-c", "64"], ["bench", "-p", "8", "-n", "4", "-r", "1"]):
        result = run(*command, "-m", path, "--force-pretokenizer", "gpt-2")
        assert result.returncode == 0, result.stderr


def test_load_takes_it_too(model: MakeModel) -> None:
    with hotcold.load(model("mystery"), force_pretokenizer="gpt-2") as engine:
        assert engine.tokenizer.encode(" 12") == [257]
    with pytest.raises(SettingError, match="SentencePiece"):
        hotcold.load(force_pretokenizer="gpt-2")
