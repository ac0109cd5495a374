"""Mistral's tekken.json: ids are those of the same pieces in the tokenizers library, behind the special ones."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from hotcold.engine.tokenizer.tokenizer import load_tokenizer
from hotcold.errors import FileError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.byte_characters import BYTE_OF
from hotcold.gguf_io.convert.conversion import convert

MakeModel = Callable[..., Any]  # the fixture hf_model
Edit = Callable[[dict[str, Any]], object]
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "Elizabeth hadn't seen 12345 of Mr. Darcy's letters; ПриветМир, ÉtéChaud, हिन्दी, 人之初 👍🎉",
    "def f(x):\n    return {'a': x[0] ** 2}  # tabs\t\t\r\n\n   ",
    "the other theatre, there and here; banana bandana",
    "",
]
N_SPECIAL, N_PIECES = 30, 380
N_VOCAB = N_SPECIAL + N_PIECES


def trained() -> Tokenizer:
    """Byte pieces by rank: bytes in order, then what merges make, most important first."""
    library = Tokenizer(models.BPE(ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=N_PIECES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS * 3, trainer)
    return library


LIBRARY = trained()


def tekken() -> dict[str, Any]:
    pieces = sorted(LIBRARY.get_vocab().items(), key=lambda item: item[1])
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(bytes(BYTE_OF[c] for c in text)).decode()}
        for text, rank in pieces
    ]
    beyond = {"rank": N_PIECES, "token_bytes": base64.b64encode(b"beyond the size").decode()}
    return {
        "config": {
            "pattern": PATTERN,
            "default_vocab_size": N_VOCAB,
            "default_num_special_tokens": N_SPECIAL,
            "version": "v7",
        },
        "vocab": [*vocab, beyond],
    }


@pytest.fixture
def directory(hf_model: MakeModel) -> Callable[..., Path]:
    def make(edit: Edit = lambda tekken: None) -> Path:
        config = {"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2}
        folder: Path = hf_model("mistral", **config).folder
        (folder / "tokenizer.model").unlink()
        content = tekken()
        edit(content)
        (folder / "tekken.json").write_text(json.dumps(content))
        return folder

    return make


def test_ids_behind_the_special_ones(directory: Callable[..., Path]) -> None:
    folder = directory()
    assert convert(folder, None, folder / "out.gguf", "f16").warnings == ()
    with open_gguf(folder / "out.gguf") as file:
        assert file.get_str("tokenizer.ggml.pre") == "tekken"
        tokenizer = load_tokenizer(file)
    assert (tokenizer.n_vocab, tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (N_VOCAB, 1, 2, True)
    for text in TEXTS:
        ids = [N_SPECIAL + token for token in LIBRARY.encode(text).ids]
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == text.encode()
    special = tokenizer.encode("[INST]a[/INST]<SPECIAL_25>", add_special=False, parse_special=True)
    assert special == [3, N_SPECIAL + LIBRARY.get_vocab()["a"], 4, 25]


def test_special_pieces_as_the_file_lists_them(directory: Callable[..., Path]) -> None:
    listed = [{"rank": n, "token_str": f"<{n}>", "is_control": n != 5} for n in range(N_SPECIAL - 1)]
    folder = directory(lambda content: content.update(special_tokens=listed))
    convert(folder, None, folder / "out.gguf", "f16")
    with open_gguf(folder / "out.gguf") as file:
        types = list(file.get_array("tokenizer.ggml.token_type")[:N_SPECIAL])
        tokenizer = load_tokenizer(file)
    assert types == [4 if n == 5 else 3 for n in range(N_SPECIAL)]
    texts = ["<0>", "<28>", f"<SPECIAL_{N_SPECIAL - 1}>"]
    assert tokenizer.encode("".join(texts), add_special=False, parse_special=True) == [0, 28, 29]


def test_a_tokenizer_json_counts_first(directory: Callable[..., Path]) -> None:
    folder = directory(lambda content: content.update(vocab="damaged"))
    LIBRARY.save(str(folder / "tokenizer.json"))
    convert(folder, None, folder / "out.gguf", "f16")


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda t: t.pop("config"), "default_num_special_tokens: None"),
        (lambda t: t["config"].update(default_vocab_size=-1), "default_vocab_size: -1"),
        (lambda t: t["config"].update(pattern=r"\w+"), r"pre-tokenizer: \w+ (no known one)"),
        (lambda t: t.update(vocab=[]), "vocab: missing or empty"),
        (lambda t: t["vocab"][7].update(rank=8), "vocab[7]"),
        (lambda t: t["vocab"][7].update(token_bytes="*"), "vocab[7]"),
        (lambda t: t["vocab"].insert(7, 7), "vocab[7]: 7"),
        (lambda t: t["vocab"][7].update(t["vocab"][6], rank=7), "vocab[7]"),
        (lambda t: t.update(special_tokens=[{"rank": "a"}]), "special_tokens: {'rank': 'a'}"),
    ],
)
def test_damaged_files(directory: Callable[..., Path], edit: Edit, text: str) -> None:
    folder = directory(edit)
    with pytest.raises(FileError) as caught:
        convert(folder, None, folder / "out.gguf", "f16")
    assert text in str(caught.value)
    assert not (folder / "out.gguf").exists()
