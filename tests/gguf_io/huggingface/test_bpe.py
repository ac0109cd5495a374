"""Byte-level BPE of a tokenizer.json: ids, types and special ids as the library has them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bpe_directories import (
    GPT2,
    IGNORE_MERGES,
    N_VOCAB,
    PRE,
    TEXTS,
    change,
    converted,
    nth_piece,
    odd_conversion,
    trained,
    with_bos,
)
from tokenizers import normalizers

from hotcold.gguf_io.convert.conversion import convert


@pytest.mark.parametrize("name", list(PRE))
def test_ids_are_those_of_the_library(bpe: Callable[..., Path], name: str) -> None:
    library = trained(PRE[name], ignore_merges=name in IGNORE_MERGES)
    if name == "llama-bpe":
        library = with_bos(library)
    tokenizer, keys = converted(bpe(library))
    assert (keys["model"], keys["pre"]) == ("gpt2", name)
    assert keys["add_bos_token"] == (name == "llama-bpe")
    for text in TEXTS:
        assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == library.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text.encode()
    special = "<|eot_id|>a<tool>b<|begin_of_text|>"
    ids = tokenizer.encode(special, add_special=False, parse_special=True)
    assert ids == library.encode(special, add_special_tokens=False).ids


def test_an_nfc_tokenizer_is_qwen2_and_the_loss_is_reported(bpe: Callable[..., Path]) -> None:
    library = trained(PRE["qwen2"])
    library.normalizer = normalizers.NFC()
    folder = bpe(library)
    assert converted(folder)[1]["pre"] == "qwen2"
    warnings = convert(folder, None, folder / "out.gguf", "f16", force=True).warnings
    assert warnings == ("tokenizer.json normalises text (NFC); GGUF cannot record that",)


def test_tokens_types_and_special_ids(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    _, keys = converted(bpe(library))
    n = library.get_vocab_size()
    assert keys["tokens"][:n] == [str(library.id_to_token(i)).encode() for i in range(n)]
    assert keys["tokens"][n:] == [b"[PAD%d]" % i for i in range(n, N_VOCAB)]
    tool, eot = (library.get_vocab()[text] for text in ("<tool>", "<|eot_id|>"))
    wanted = [3, 3, 3] + [1] * (n - 3) + [5] * (N_VOCAB - n)
    wanted[tool], wanted[eot] = 4, 3
    assert keys["token_type"] == wanted
    merges = json.loads(library.to_str())["model"]["merges"]
    assert keys["merges"] == [" ".join(pair).encode() for pair in merges]
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["padding_token_id"]) == (0, 1, 2)
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (False, False)
    assert "scores" not in keys


def test_merges_as_text_and_a_model_without_its_type(bpe: Callable[..., Path]) -> None:
    folder = bpe(trained(GPT2))
    before = converted(folder)[1]

    def older(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
        del tokenizer["model"]["type"]
        tokenizer["model"]["byte_fallback"] = True  # of no effect among bytes

    change(folder, older)
    assert converted(folder)[1] == before


def test_a_pad_token_that_is_an_ordinary_piece_stays_one(bpe: Callable[..., Path]) -> None:
    """Whoever names it: config.json by its id, tokenizer_config.json by its text, as unknown, as BOS or EOS."""
    library = trained(GPT2)
    named = {
        "pad_token": "!",
        "unk_token": nth_piece(library, 0),
        "bos_token": "a",
        "eos_token": nth_piece(library, 1),
    }
    tokenizer, keys = converted(bpe(library, **named))
    for text in named.values():
        assert keys["token_type"][library.token_to_id(text)] == 1
        assert tokenizer.decode(tokenizer.encode(f"x{text}y")) == f"x{text}y".encode()
    assert keys["padding_token_id"] == library.token_to_id("!")


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id"])
def test_an_id_of_the_config_makes_no_control_piece(bpe: Callable[..., Path], name: str) -> None:
    library = trained(GPT2)
    folder = bpe(library)
    (folder / "tokenizer_config.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    exclamation = library.token_to_id("!")
    (folder / "config.json").write_text(json.dumps(config | {name: exclamation}))
    tokenizer, keys = converted(folder)
    assert keys["token_type"][exclamation] == 1
    assert tokenizer.encode("!", parse_special=True, add_special=False) == [exclamation]


@pytest.mark.parametrize(
    ("text", "special", "kind"), [("made", False, 4), ("!", True, 3), ("<tool>", True, 3)]
)
def test_an_added_token_that_is_there_already_says_its_type(
    bpe: Callable[..., Path], text: str, special: bool, kind: int
) -> None:
    """As in the library, which gives it the first id; no text becomes the second."""
    library = trained(GPT2)
    text = nth_piece(library, 0) if text == "made" else text
    folder, first = bpe(library), library.token_to_id(text)
    entry = {"id": 630, "content": text, "special": special, "normalized": False}
    change(folder, lambda t: t["added_tokens"].append(entry))
    tokenizer, keys, warning = odd_conversion(folder)
    assert (keys["tokens"][630], keys["token_type"][630]) == (b"[PAD630]", 5)
    assert "pieces with the text of another one, which no text becomes: 1" in warning
    assert keys["token_type"][first] == kind
    assert tokenizer.encode(text, parse_special=True, add_special=False) == [first]


@pytest.mark.parametrize(
    ("config", "generation", "keys"),
    [
        ([1, 400], None, {"eot_token_id": 400}),
        (1, [1, 400], {"eot_token_id": 400}),
        ([1, 300], [301, 302, 400], {"eot_token_id": 400, "hotcold.end_token_ids": [300, 301, 302]}),
        ([1, 300, 301], 1, {"eot_token_id": 300, "hotcold.end_token_ids": [301]}),
        ([301, 1], [301, 9999, -1, True], {"eot_token_id": 301}),
        (1, 1, {}),
    ],
)
def test_every_id_that_ends_a_text_is_kept(
    bpe: Callable[..., Path], config: Any, generation: Any, keys: dict[str, Any]
) -> None:
    """400 is `<|eot_id|>`; the end of a turn has a key of llama.cpp's."""
    folder = bpe(trained(GPT2))
    assert trained(GPT2).token_to_id("<|eot_id|>") == 400
    values = json.loads((folder / "config.json").read_text()) | {"eos_token_id": config}
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    tokenizer, found = converted(folder)
    assert found["eos_token_id"] == 1
    ends = {k: v for k, v in found.items() if k in ("eot_token_id", "eom_token_id", "hotcold.end_token_ids")}
    assert ends == keys
    wanted = {
        1,
        400,
        *(n for ids in (config, generation) for n in (ids if isinstance(ids, list) else [ids or 1])),
    }
    assert tokenizer.end_ids == {n for n in wanted if type(n) is int and 0 <= n < N_VOCAB}


def test_the_only_end_that_is_named_is_eos(bpe: Callable[..., Path]) -> None:
    folder = bpe(trained(GPT2))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, 301]}))
    tokenizer, keys = converted(folder)
    assert (keys["eos_token_id"], keys["eot_token_id"]) == (300, 301)
    assert tokenizer.end_ids == {1, 300, 301, 400}  # two are known by their text
