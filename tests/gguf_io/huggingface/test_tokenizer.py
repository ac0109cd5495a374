"""The vocabulary of a converted model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2

from hotcold.errors import FileError
from hotcold.gguf_io.convert.conversion import convert

MakeLlama = Callable[..., Any]  # the fixture llama


def tokenizer_of(folder: Path, name: str = "out.gguf") -> dict[str, Any]:
    convert(folder, None, folder / name, "f16", force=True)
    fields = GGUFReader(folder / name).fields
    return {
        key.removeprefix("tokenizer.ggml."): field.contents()
        for key, field in fields.items()
        if key.startswith("tokenizer.")
    }


def change_model(folder: Path, change: Callable[[Any], None]) -> None:
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    change(model)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def settings(folder: Path, **values: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def test_pieces_scores_and_types(llama: MakeLlama) -> None:
    found = tokenizer_of(llama().folder)
    assert found["model"] == "llama"
    assert found["pre"] == "default"
    assert found["tokens"] == ["<unk>", "<s>", "</s>"] + [chr(0x4E00 + i) for i in range(37)]
    assert found["scores"] == [-float(i) for i in range(40)]
    assert found["token_type"] == [2, 3, 3] + [1] * 37
    assert (found["bos_token_id"], found["eos_token_id"], found["unknown_token_id"]) == (1, 2, 0)
    assert "padding_token_id" not in found
    assert (found["add_bos_token"], found["add_eos_token"], found["add_space_prefix"]) == (True, False, True)
    assert "tokenizer.chat_template" not in found


def test_settings_of_tokenizer_config(llama: MakeLlama) -> None:
    model = llama()
    settings(model.folder, add_bos_token=False, add_eos_token=True, chat_template="{{ messages }}")
    change_model(model.folder, lambda m: setattr(m.normalizer_spec, "add_dummy_prefix", False))
    found = tokenizer_of(model.folder)
    assert (found["add_bos_token"], found["add_eos_token"], found["add_space_prefix"]) == (False, True, False)
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def test_special_ids_in_order_of_precedence(llama: MakeLlama) -> None:
    """tokenizer_config.json, else config.json, else tokenizer.model."""
    model = llama()
    assert tokenizer_of(model.folder)["eos_token_id"] == 2
    model.rewrite(eos_token_id=[5, 6], pad_token_id=7)
    found = tokenizer_of(model.folder)
    assert (found["eos_token_id"], found["padding_token_id"]) == (5, 7)
    settings(model.folder, eos_token={"content": chr(0x4E00 + 6)}, pad_token=None)
    assert tokenizer_of(model.folder)["eos_token_id"] == 9
    settings(model.folder, eos_token="not a token")
    assert tokenizer_of(model.folder)["eos_token_id"] == 5


def test_no_bos(llama: MakeLlama) -> None:
    model = llama()
    change_model(model.folder, lambda m: setattr(m.trainer_spec, "bos_id", -1))
    found = tokenizer_of(model.folder)
    assert "bos_token_id" not in found
    assert found["add_bos_token"] is False


def test_added_tokens_and_padding(llama: MakeLlama) -> None:
    model = llama(n_pieces=35)
    (model.folder / "added_tokens.json").write_text('{"<a>": 35, "<b>": 36, "<s>": 1}')
    decoder = {"1": {"content": "<s>", "special": True}, "36": {"content": "<b>", "special": True}}
    settings(model.folder, added_tokens_decoder=decoder)
    found = tokenizer_of(model.folder)
    assert found["tokens"][33:] == [
        chr(0x4E00 + 30),
        chr(0x4E00 + 31),
        "<a>",
        "<b>",
        "[PAD37]",
        "[PAD38]",
        "[PAD39]",
    ]
    assert found["token_type"][33:] == [1, 1, 4, 3, 5, 5, 5]
    assert found["scores"][34:] == [-34.0] + [-1000.0] * 5
    assert found["token_type"][1] == 3


def refusal(folder: Path) -> str:
    with pytest.raises(FileError) as caught:
        tokenizer_of(folder)
    assert not (folder / "out.gguf").exists()
    return str(caught.value)


def test_vocabularies_that_are_refused(llama: MakeLlama) -> None:
    model = llama(n_pieces=41)
    assert "41 tokens (config.json: vocab_size 40)" in refusal(model.folder)
    (model.folder / "tokenizer.model").write_bytes(b"\xff" * 100)
    assert "no SentencePiece model" in refusal(model.folder)
    (model.folder / "tokenizer.model").write_bytes(b"")
    assert "0 pieces" in refusal(model.folder)


def test_damaged_pieces(llama: MakeLlama) -> None:
    file = (model := llama()).folder / "tokenizer.model"
    content = file.read_bytes()
    file.write_bytes(content.replace(chr(0x4E00 + 5).encode(), b"a\xff\xfe"))
    assert "piece 8: b'a\\xff\\xfe' (UTF-8 text and a finite score)" in str(refusal(model.folder))
    file.write_bytes(content)
    change_model(model.folder, lambda m: setattr(m.pieces[4], "score", float("nan")))
    assert "piece 4" in refusal(model.folder)


def test_a_unigram_model(llama: MakeLlama) -> None:
    model = llama()
    change_model(model.folder, lambda m: setattr(m.trainer_spec, "model_type", 1))
    assert "model type 1 (GGUF's llama vocabulary is BPE (2))" in refusal(model.folder)


def test_a_gap_in_the_added_tokens(llama: MakeLlama) -> None:
    model = llama(n_pieces=35)
    (model.folder / "added_tokens.json").write_text('{"<a>": 36}')
    assert "id 36 (the next free id is 35)" in refusal(model.folder)


def test_a_special_id_beyond_the_vocabulary(llama: MakeLlama) -> None:
    assert "eos id: 40 (the vocabulary has 40 tokens)" in refusal(llama(eos_token_id=40).folder)


def test_normalisation_is_reported(llama: MakeLlama) -> None:
    model = llama()

    def normalise(m: Any) -> None:
        m.normalizer_spec.remove_extra_whitespaces = True
        m.normalizer_spec.precompiled_charsmap = b"x"
        m.normalizer_spec.name = "nmt_nfkc"

    change_model(model.folder, normalise)
    warnings = convert(model.folder, None, model.folder / "out.gguf", "f16").warnings
    assert [text.split(" ")[1] for text in warnings] == ["normalises", "removes"]
