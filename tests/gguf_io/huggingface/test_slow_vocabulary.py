"""`vocab.json` and `merges.txt` in place of a tokenizer.json, and what other files add to them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bpe_directories import (
    GPT2,
    PRE,
    SETTINGS,
    TEXTS,
    MakeModel,
    converted,
    refusal,
    save_slow,
    trained,
)


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("llama", "gpt-2", {"tokenizer_class": "GPT2Tokenizer"}),
        ("llama", "gpt-2", {}),
        ("opt", "opt", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}),
        ("qwen2", "qwen2", {"tokenizer_class": "Qwen2TokenizerFast"}),
    ],
)
def test_vocab_and_merges(bpe: Callable[..., Path], kind: str, name: str, settings: dict[str, Any]) -> None:
    library = trained(PRE.get(name, GPT2))
    folder = bpe(library, kind, **settings)
    save_slow(library, folder)
    assert (folder / "merges.txt").read_text().startswith("#version")
    tokenizer, keys = converted(folder)
    assert keys["pre"] == name
    assert keys["token_type"][:4] == [3, 3, 1, 1]  # nothing says of <pad> that it was added
    for text in TEXTS:
        ids = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == [0] * (name == "opt") + ids


def test_a_tokenizer_model_counts_first(hf_model: MakeModel) -> None:
    folder = hf_model("llama").folder
    trained(GPT2).save(str(folder / "tokenizer.json"))
    assert converted(folder)[1]["model"] == "llama"


def test_missing_files_of_a_vocabulary(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    folder = bpe(library)
    save_slow(library, folder)
    (folder / "merges.txt").unlink()
    assert "1 missing; merges.txt (fetch it" in refusal(folder)
    (folder / "vocab.json").unlink()
    assert "1 missing; tokenizer.model or tokenizer.json (fetch it" in refusal(folder)


def test_special_tokens_map_names_what_the_config_does_not(bpe: Callable[..., Path]) -> None:
    folder = bpe(trained(GPT2))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    (folder / "special_tokens_map.json").write_text(
        '{"eos_token": "<pad>", "bos_token": "<|begin_of_text|>"}'
    )
    keys = converted(folder)[1]
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (0, 1)


def test_added_tokens_of_the_other_files(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    folder, n = bpe(library), library.get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({"<a>": n, "<b>": n + 2}))
    decoder = {
        str(n): {"content": "<a>", "special": True},
        str(n + 3): {"content": "<|c|>", "special": False},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"added_tokens_decoder": decoder}))
    keys = converted(folder)[1]
    assert keys["tokens"][n : n + 5] == [b"<a>", b"[PAD%d]" % (n + 1), b"<b>", b"<|c|>", b"[PAD%d]" % (n + 4)]
    assert keys["token_type"][n : n + 5] == [3, 5, 4, 3, 5]
