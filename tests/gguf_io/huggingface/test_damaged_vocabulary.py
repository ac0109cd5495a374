"""Vocabularies and merges that are damaged, doubled, or name what is not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpe_directories import (
    GPT2,
    N_VOCAB,
    PRE,
    TEXTS,
    MakeModel,
    change,
    converted,
    nth_piece,
    odd_conversion,
    refusal,
    save_slow,
    trained,
    with_bos,
)

from hotcold.errors import HotcoldError
from hotcold.gguf_io.convert.conversion import convert

BROKEN: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda t: t.pop("model"), "model type: missing"),
    (lambda t: t["model"].update(type="Unigram"), "model type: 'Unigram'"),
    (lambda t: (t["model"].update(byte_fallback=True), t.update(pre_tokenizer=None)), "spaces: kept as they are"),
    (lambda t: t["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix: '</w>'"),
    (lambda t: t["model"].update(vocab=[]), "vocab: missing or empty"),
    (lambda t: t["model"]["vocab"].update(Ġx=True), "id of 'Ġx': True"),
    (lambda t: t["model"]["vocab"].update(Ġx=-1), "id of 'Ġx': -1"),
    (lambda t: t["model"]["vocab"].update(Ġx=2**40), "id of 'Ġx'"),
    (lambda t: t["model"]["vocab"].update(Ġx=2**30), f"1073741825 tokens (config.json: vocab_size {N_VOCAB})"),
    (lambda t: t["model"]["vocab"].update(Ġxyz=5), "id 5: "),
    (lambda t: t["model"]["vocab"].update({"\udc80": 639}), "must be whole characters"),
    (lambda t: t["model"].update(merges=None), "merges: missing"),
    (lambda t: t["model"]["merges"].insert(7, ["a"]), "merge 7: ['a']"),
    (lambda t: t["model"]["merges"].insert(7, ["a", ""]), "merge 7: ['a', '']"),
    (lambda t: t["model"]["merges"].insert(7, ["a", "b", "c"]), "merge 7: ['a', 'b', 'c']"),
    (lambda t: t["model"]["merges"].insert(7, "ab"), "merge 7: 'ab'"),
    (lambda t: t.update(added_tokens=[{"id": 1.5, "content": "x"}]), "added_tokens: {'id': 1.5"),
    (lambda t: t["added_tokens"].append({"id": 9, "content": "<new>"}), "added token 9: '<new>' (the vocabulary has"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "text"), BROKEN)
def test_damaged_vocabularies(
    bpe: Callable[..., Path], edit: Callable[[dict[str, Any]], object], text: str
) -> None:
    folder = bpe(trained(GPT2))
    change(folder, edit)
    assert text in refusal(folder)


def test_damaged_merges_files(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    folder = bpe(library)
    save_slow(library, folder)
    good = (folder / "merges.txt").read_bytes()
    for content, text in (
        (b"a  b\n", "merge 0: 'a  b'"),
        (b"\xff\xfe", "no UTF-8"),
        (b"a\n", "merge 0: 'a'"),
    ):
        (folder / "merges.txt").write_bytes(content)
        assert text in refusal(folder)
    (folder / "merges.txt").write_bytes(good.replace(b"\n", b"\r\n"))
    converted(folder)


ABSENT = "merges of or into pieces that are not there, left out: "
MERGES: list[tuple[Any, int]] = [
    ([["a", "b c"]], 1),
    ([["q\u1e9e", "7"], ["ẞ", "ß"]], 2),
    (["a b c", "q 7\u1e9e"], 2),
    ([["a", "\u1e9e"], ["a", "\u1e9e"], ["\u1e9e", "a"]], 3),
]


@pytest.mark.parametrize(("more", "n"), MERGES)
def test_merges_that_cannot_be_are_counted(bpe: Callable[..., Path], more: list[Any], n: int) -> None:
    folder = bpe(trained(GPT2))
    _, before = converted(folder)
    change(folder, lambda t: t["model"].update(merges=[*more, *t["model"]["merges"]]))
    tokenizer, after, warning = odd_conversion(folder)
    assert after == before
    assert ABSENT + str(n) in warning
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0].encode()


@pytest.mark.parametrize("n", [1, 2, 20])
def test_pieces_without_a_row_are_left_out(hf_model: MakeModel, n: int) -> None:
    """Those of the vocabulary, with their merges, and those that were added."""
    library = trained(GPT2)
    n_vocab = library.get_vocab_size() - n
    folder = hf_model("llama", vocab_size=n_vocab).folder
    (folder / "tokenizer.model").unlink()
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot_id|>"}))
    tokenizer, keys, warning = odd_conversion(folder)
    assert f"pieces for which the model has no row, left out: {n}" in warning
    assert len(keys["tokens"]) == tokenizer.n_vocab == n_vocab
    assert (ABSENT in warning) == (n > 2)  # <|eot_id|> and <tool> are the last two
    assert "eos_token_id" not in keys
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize("of", ["vocab", "vocab.json"])
def test_a_piece_that_is_listed_again_counts_once(bpe: Callable[..., Path], of: str) -> None:
    """With its last id, as in the library."""
    library = trained(GPT2)
    folder, text = bpe(library), nth_piece(library, 0)
    first = library.get_vocab()[text]
    if of == "vocab.json":
        save_slow(library, folder)
    path = folder / ("vocab.json" if of == "vocab.json" else "tokenizer.json")
    content = path.read_text()
    mark = f'"{text}":{first},' if f'"{text}":{first},' in content else f'"{text}": {first},'
    assert mark in content
    path.write_text(content.replace(mark, f"{mark}{json.dumps(text)}:630,"))
    tokenizer, keys, warning = odd_conversion(folder)
    assert "lists again, of which the last counts: 1" in warning
    assert (keys["tokens"][630], keys["tokens"][first]) == (text.encode(), b"[PAD%d]" % first)
    assert tokenizer.encode(text, add_special=False) == [630]


def test_random_damage_gives_one_of_our_errors(bpe: Callable[..., Path]) -> None:
    """Values of tokenizer.json anywhere in the tree become something else."""
    folder = bpe(with_bos(trained(PRE["falcon"])))
    whole = json.loads((folder / "tokenizer.json").read_text())
    random = np.random.default_rng(5)
    others: list[Any] = [None, -1, 2**70, "x", "\udc80", [], {}, [[]], True, 0.5]
    refused = 0
    for _ in range(150):
        damaged = json.loads(json.dumps(whole))
        at = damaged
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = keys[int(random.integers(len(keys)))]
            if not isinstance(at[key], dict | list) or not at[key] or random.integers(4) == 0:
                break
            at = at[key]
        at[key] = others[int(random.integers(len(others)))]
        (folder / "tokenizer.json").write_text(json.dumps(damaged))
        try:
            convert(folder, None, folder / "out.gguf", "f16", force=True)
        except HotcoldError:
            refused += 1
    assert refused > 30
