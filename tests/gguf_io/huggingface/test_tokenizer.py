"""The vocabulary of a converted model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2

from hotcold.engine.tokenizer.tokenizer import load_tokenizer
from hotcold.errors import FileError
from hotcold.gguf_io import open_gguf
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
    model = llama(n_pieces=40 + 257)
    assert "297 tokens (config.json: vocab_size 40)" in refusal(model.folder)
    (model.folder / "tokenizer.model").write_bytes(b"\xff" * 100)
    assert "no SentencePiece model" in refusal(model.folder)
    (model.folder / "tokenizer.model").write_bytes(b"")
    assert "empty (0 bytes)" in refusal(model.folder)


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


def odd(folder: Path) -> tuple[dict[str, Any], str]:
    """The keys, and the one warning of what is odd."""
    (warning,) = convert(folder, None, folder / "out.gguf", "f16", force=True).warnings
    assert warning.startswith("odd vocabulary (")
    return tokenizer_of(folder), warning


@pytest.mark.parametrize("numbers", [[36], [35, 38], [37, 38]])
def test_gaps_in_the_added_tokens(llama: MakeLlama, numbers: list[int]) -> None:
    model = llama(n_pieces=35)
    (model.folder / "added_tokens.json").write_text(json.dumps({f"<{n}>": n for n in numbers}))
    found, warning = odd(model.folder)
    wanted = {n: f"<{n}>" for n in numbers}
    assert found["tokens"][35:] == [wanted.get(n, f"[PAD{n}]") for n in range(35, 40)]
    assert found["token_type"][35:] == [4 if n in wanted else 5 for n in range(35, 40)]
    assert f"filled: {max(numbers) - 34 - len(numbers)}" in warning


@pytest.mark.parametrize("n", [1, 3])
def test_pieces_without_a_row_are_left_out(llama: MakeLlama, n: int) -> None:
    """Those of tokenizer.model, or one that was added, which config.json may name."""
    found, warning = odd(llama(n_pieces=40 + n).folder)
    assert (len(found["tokens"]), len(found["scores"])) == (40, 40)
    assert f"pieces for which the model has no row, left out: {n}" in warning


def test_an_added_token_without_a_row_is_left_out(llama: MakeLlama) -> None:
    model = llama(n_pieces=40, pad_token_id=40)
    (model.folder / "added_tokens.json").write_text('{"<pad>": 40}')
    found, warning = odd(model.folder)
    assert len(found["tokens"]) == 40
    assert "padding_token_id" not in found
    assert "no row, left out: 1" in warning


SPECIAL, PLAIN = {"special": True}, {"special": False}


@pytest.mark.parametrize("place", ["decoder", "tokenizer.json"])
def test_types_of_added_tokens_within_tokenizer_model(llama: MakeLlama, place: str) -> None:
    """Piece 4 was added as special, 5 as another one; bytes and the unknown piece stay what they are."""
    model = llama()
    change_model(model.folder, lambda m: setattr(m.pieces[6], "piece", "<0x0A>"))
    change_model(model.folder, lambda m: setattr(m.pieces[7], "piece", "▁▁"))
    change_model(model.folder, lambda m: setattr(m.pieces[6], "type", 6))
    texts = {0: "<unk>", 1: "<s>", 4: chr(0x4E01), 5: chr(0x4E02), 6: "<0x0A>", 7: "▁▁"}
    special = {n: SPECIAL if n in (0, 1, 4, 6) else PLAIN for n in texts}
    if place == "decoder":
        decoder = {str(n): {"content": text} | special[n] for n, text in texts.items()}
        settings(model.folder, added_tokens_decoder=decoder)
    else:
        listed = [{"id": n, "content": text} | special[n] for n, text in texts.items()]
        (model.folder / "tokenizer.json").write_text(json.dumps({"added_tokens": listed}))
    found = tokenizer_of(model.folder)
    assert found["token_type"][:8] == [2, 3, 3, 1, 3, 4, 6, 4]
    assert found["tokens"][7] == "  "  # it is looked for in a text as it is typed


def test_a_tokenizer_json_of_other_pieces_says_nothing(llama: MakeLlama) -> None:
    model = llama()
    listed = [{"id": 4, "content": chr(0x4E01)} | SPECIAL, {"id": 5, "content": "other"} | SPECIAL]
    (model.folder / "tokenizer.json").write_text(json.dumps({"added_tokens": listed}))
    assert tokenizer_of(model.folder)["token_type"][4:6] == [1, 1]


def test_an_added_token_takes_the_place_of_an_unused_name(llama: MakeLlama) -> None:
    """As `<start_of_image>` has that of `<unused0>` in some models."""
    model = llama()
    settings(model.folder, added_tokens_decoder={"9": {"content": "<image>"} | SPECIAL})
    found, warning = odd(model.folder)
    assert (found["tokens"][9], found["token_type"][9]) == ("<image>", 3)
    assert "replaced: 1" in warning


def test_names_in_a_config_make_no_types(llama: MakeLlama) -> None:
    model = llama(pad_token_id=5, bos_token_id=6, eos_token_id=7)
    settings(model.folder, unk_token=chr(0x4E05))
    assert tokenizer_of(model.folder)["token_type"] == [2, 3, 3] + [1] * 37


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [([2, 5], None, {2, 5}), (None, [2, 6, 7], {2, 6, 7}), ([2, 5], [2, 6], {2, 5, 6}), ([5, 2], 2, {2, 5})],
)
def test_every_id_that_ends_a_text_is_kept(
    llama: MakeLlama, config: Any, generation: Any, ends: set[int]
) -> None:
    model = llama() if config is None else llama(eos_token_id=config)
    if generation is not None:
        (model.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    tokenizer_of(model.folder)
    with open_gguf(model.folder / "out.gguf") as file:
        assert load_tokenizer(file).end_ids == ends


@pytest.mark.parametrize(
    ("config", "generation", "lost"),
    [([2, 40], None, [("config.json", "40")]), (2, [2, 41, -7], [("generation_config.json", "41"), ("generation_config.json", "-7")]),
     ([2, "</s>"], [2, 1.5], [("config.json", "'</s>'"), ("generation_config.json", "1.5")]), (2, [2, -1, None], [])],
)  # fmt: skip
def test_an_id_that_can_end_nothing_is_said(
    llama: MakeLlama, config: Any, generation: Any, lost: list[tuple[str, str]]
) -> None:
    model = llama(eos_token_id=config)
    (model.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    found = convert(model.folder, None, model.folder / "out.gguf", "f16").warnings
    said = "{}: eos_token_id {} is none of the 40 pieces, and ends nothing"
    assert [line for line in found if "eos_token_id" in line] == [said.format(*each) for each in lost]


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
