"""Which pre-tokenizer a tokenizer has: known ones by what they do, and what of others is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bpe_directories import (
    BYTES,
    CL100K,
    GPT2,
    O200K,
    PRE,
    TEXTS,
    Digits,
    MakeModel,
    Split,
    converted,
    refusal,
    save_slow,
    sequence,
    trained,
)
from tokenizers import Regex, normalizers, pre_tokenizers

from hotcold.errors import SettingError
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.huggingface import pretokenizer as hf_pretokenizer
from hotcold.gguf_io.pretokenizers import PRETOKENIZERS


def no_pretokenizer(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = None


UNKNOWN: list[tuple[Any, str]] = [
    (sequence(Digits(individual_digits=True), BYTES), "Digits True, then ByteLevel False"),
    (pre_tokenizers.ByteLevel(add_prefix_space=True), "other ByteLevel"),
    (sequence(Split(Regex(r"\p{N}{1,2}"), "isolated"), BYTES), r"Split \p{N}{1,2}, then ByteLevel False"),
    (sequence(Split(Regex(CL100K % r"\p{N}"), "removed"), BYTES), "other Split"),
    (sequence(BYTES, Split(Regex(r"\p{N}"), "isolated"), GPT2), "ByteLevel False, then Split"),  # of bytes
    (sequence(Split(Regex(r"\p{N}"), "removed", invert=True), GPT2), "other Split"),
    (pre_tokenizers.Whitespace(), "other Whitespace"),
]


@pytest.mark.parametrize(("pre", "text"), UNKNOWN)
def test_unknown_pretokenizers_are_described(bpe: Callable[..., Path], pre: Any, text: str) -> None:
    library = trained(GPT2)
    library.pre_tokenizer = pre
    folder = bpe(library)
    message = refusal(folder)
    assert f"pre-tokenizer: {text}" in message
    assert "--force-pretokenizer NAME says which one cuts text alike, known: default, gpt-2" in message
    assert converted(folder, force_pretokenizer="default")[1]["pre"] == "default"


def test_other_normalizers_are_not_known(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    library.normalizer = normalizers.Lowercase()
    assert "pre-tokenizer: Lowercase, then ByteLevel True (no known one)" in refusal(bpe(library))


def test_other_classes_of_slow_tokenizers_are_not_known(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    folder = bpe(library, tokenizer_class="OtherTokenizer")
    save_slow(library, folder)
    assert "vocab.json: pre-tokenizer: OtherTokenizer (no known one)" in refusal(folder)
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "GPT2Tokenizer with add_prefix_space" in refusal(folder)
    assert converted(folder, force_pretokenizer="gpt-2")[1]["pre"] == "gpt-2"


def test_a_forced_pretokenizer_must_be_known_and_of_use(
    bpe: Callable[..., Path], hf_model: MakeModel
) -> None:
    assert "force_pretokenizer: mystery (known: default, gpt-2" in refusal(
        bpe(trained(GPT2)), force_pretokenizer="mystery"
    )
    folder = hf_model("llama", "spm").folder
    assert "tokenizer.model has no pre-tokenizer" in refusal(folder, force_pretokenizer="gpt-2")
    convert(folder, None, folder / "out.gguf", "f16")
    with pytest.raises(SettingError, match="a GGUF file keeps its own"):
        convert(folder / "out.gguf", None, folder / "q.gguf", "q8_0", force_pretokenizer="gpt-2")


@pytest.mark.parametrize("pre", ["qwen2", "gpt-4o"])
def test_only_ignore_merges_is_another(bpe: Callable[..., Path], pre: str) -> None:
    """Then the name that cuts alike is written, and said not to take whole words so."""
    folder = bpe(trained(PRE[pre], ignore_merges=True))
    assert converted(folder)[1]["pre"] == pre
    (warning,) = convert(folder, None, folder / "out.gguf", "f16", force=True).warnings
    assert f"ignore_merges is true, and GGUF's {pre} says the opposite" in warning


def test_patterns_are_compared_however_they_escape_the_same(bpe: Callable[..., Path]) -> None:
    pattern = (CL100K % r"\p{N}").replace(r"\r", "\r").replace(r"\n", "\n")
    short = pattern.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")
    for spelled in (pattern, short):
        library = trained(sequence(Split(Regex(spelled), "isolated"), BYTES))
        assert converted(bpe(library))[1]["pre"] == "qwen2"


@pytest.mark.parametrize("pre", ["qwen2", "gpt-4o"])
def test_matches_kept_and_the_rest_removed(bpe: Callable[..., Path], pre: str) -> None:
    """As in tokenizer.json files made from tiktoken's; nothing is between the matches."""
    pattern = {"qwen2": CL100K % r"\p{N}", "gpt-4o": O200K}[pre]
    library = trained(sequence(Split(Regex(pattern), "removed", invert=True), BYTES))
    tokenizer, keys = converted(bpe(library))
    assert keys["pre"] == pre
    for text in TEXTS:
        assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids


def test_classes_of_slow_tokenizers_have_names_that_are_known() -> None:
    assert set(hf_pretokenizer.BY_CLASS.values()) <= set(PRETOKENIZERS)
