"""BPE over text, as Gemma 4 has it: ids are llama.cpp's, any bytes come back, other vocabularies are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotcold.engine.tokenizer import Tokenizer, load_tokenizer
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.pretokenizers import OF_TEXT

DATA = Path(__file__).parent.parent.parent / "data" / "bpe"
RECORDED: dict[str, Any] = json.loads((DATA / "recorded_text.json").read_text())
OF_BYTES: dict[str, Any] = json.loads((DATA / "recorded.json").read_text())
TEXTS: list[str] = OF_BYTES["texts"]
NAMES = [name for entry in OF_TEXT for name in entry.names]


def loaded(name: str) -> Tokenizer:
    with open_gguf(DATA / "vocab_text.gguf") as file:
        return load_tokenizer(file, name)


@pytest.mark.parametrize("name", NAMES)
def test_same_ids_as_llama_cpp(name: str) -> None:
    tokenizer = loaded(name)
    for text, ids in zip(TEXTS, RECORDED["plain"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text
    for text, ids in zip(RECORDED["young_texts"], RECORDED["young"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text
    group = "sarvam-moe" if name == "sarvam-moe" else "gemma4"
    for number, ids in zip(OF_BYTES["special_texts"], RECORDED["special"][group], strict=True):
        assert tokenizer.encode(TEXTS[number], parse_special=True) == ids, TEXTS[number]


def test_a_character_without_a_piece_is_its_bytes() -> None:
    ids = TOKENIZER.encode("\U0001f600\u9f98", add_special=False)
    assert [TOKENIZER.piece(i) for i in ids] == [bytes([byte]) for byte in "\U0001f600\u9f98".encode()]


@given(st.binary(max_size=40))
def test_all_bytes_come_back(data: bytes) -> None:
    tokenizer = TOKENIZER
    ids = tokenizer.encode(data, add_special=False)
    assert tokenizer.decode(ids) == data.replace("\u2581".encode(), b" ")


TOKENIZER = loaded("sarvam-moe")


@pytest.mark.parametrize(
    ("fields", "begins"),
    [
        ({"model": "gemma4"}, True),
        ({"pre": "gemma4"}, True),
        ({"pre": "sarvam-moe"}, False),
        ({"model": "gemma4", "add_bos": False}, True),
        ({"pre": "gemma4", "add_bos": False}, True),
        ({"pre": "granite-embed-multi-311m", "add_bos": False}, True),
        ({"pre": "sarvam-moe", "add_bos": True}, True),
        ({"pre": "sarvam-moe", "add_bos": False}, False),
    ],
)
def test_what_the_file_says(tmp_path: Path, fields: dict[str, Any], begins: bool) -> None:
    """A vocabulary of the kind gemma4 needs no name of a pre-tokenizer, and begins a text whatever the file says."""
    path = tmp_path / "m.gguf"
    written(path, **fields)
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(file)
    assert tokenizer.warnings == ()
    assert (tokenizer.encode("Hello, world!")[0] == tokenizer.bos) == begins


def test_a_vocabulary_of_bytes_is_refused() -> None:
    with open_gguf(DATA / "vocab.gguf") as file, pytest.raises(FileError, match="gemma4 .*<0xXX>") as caught:
        load_tokenizer(file, "gemma4")
    assert "choose another" in str(caught.value)


def test_a_byte_without_a_piece_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    written(path, pre="sarvam-moe", without=("<0xF0>",))
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(file)
    assert tokenizer.decode(tokenizer.encode("a b")) == b"a b"
    for text in ("\U0001fae8", b"\xf0a"):
        with pytest.raises(SettingError, match="byte 0xF0 .*no piece"):
            tokenizer.encode(text)


def written(
    path: Path,
    model: str = "gpt2",
    pre: str | None = None,
    without: tuple[str, ...] = (),
    add_bos: bool | None = None,
) -> None:
    """vocab_text.gguf with other metadata; what is left out of its pieces is a normal one of another text."""
    import gguf

    fields = gguf.GGUFReader(DATA / "vocab_text.gguf").fields
    values = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in fields.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    tokens = [f"left out {i}" if token in without else token for i, token in enumerate(values["tokens"])]
    writer.add_token_list(tokens)
    writer.add_token_types(
        [1 if t.startswith("left out") else k for t, k in zip(tokens, values["token_type"], strict=True)]
    )
    writer.add_token_merges(values["merges"])
    writer.add_bos_token_id(values["bos_token_id"])
    writer.add_eos_token_id(values["eos_token_id"])
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
