"""The parts of a tokenizer.json that every kind of vocabulary in it has, each checked."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hotcold.errors import FileError
from hotcold.gguf_io.huggingface.vocabulary import AGAIN, MAX_ID, NORMAL, Tokens, shown, utf8
from hotcold.gguf_io.oddities import ABSENT_MERGES, Oddities

FILE = "tokenizer.json"
Merge = tuple[str, str]


def bpe_model(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a tokenizer.json; FileError unless it is BPE without marks at words' ends."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = repr(model.get("type"))[:60] if isinstance(model, dict) else "missing"
        raise FileError(f"{path}: model type", kind, "BPE can be converted", "use another model")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise FileError(f"{path}: {name}", repr(model[name])[:60], "must be empty", "use another model")
    return model


def checked_ids(path: Path, vocab: Any) -> dict[str, int]:
    """Ids by text."""
    if not isinstance(vocab, dict) or not vocab:
        raise FileError(f"{path}: vocab", "missing or empty", "an id for each token", AGAIN)
    for text, number in vocab.items():
        if type(number) is not int or not 0 <= number <= MAX_ID:
            what, bound = f"{path}: id of {text[:60]!r}", f"a whole number up to {MAX_ID}"
            raise FileError(what, repr(number)[:60], bound, AGAIN)
    return vocab


def by_id(path: Path, ids: Mapping[str, int]) -> Tokens:
    """Normal tokens by id."""
    pieces: Tokens = {}
    for text, number in ids.items():
        if number in pieces:
            found = f"{shown(pieces[number][0])} and {text!r}"[:100]
            raise FileError(f"{path}: id {number}", found, "one token each", AGAIN)
        pieces[number] = (utf8(text, f"{path}: token {number}"), NORMAL)
    return pieces


def merge_pairs(path: Path, merges: Any) -> Iterator[tuple[str, ...]]:
    """Merges as "a b" or, newer, as ["a", "b"]; one of pieces with spaces can have more parts."""
    if not isinstance(merges, list):
        raise FileError(f"{path}: merges", "missing", "a list of pairs", AGAIN)
    for number, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        whole = isinstance(parts, list) and all(isinstance(part, str) and part for part in parts)
        if not whole or len(parts) < 2 or (parts is merge and len(parts) > 2):
            raise FileError(f"{path}: merge {number}", repr(merge)[:60], "two tokens", AGAIN)
        yield tuple(parts)


def usable_merges(
    merges: Iterable[tuple[str, ...]], ids: Mapping[str, int], n_vocab: int, oddities: Oddities
) -> list[Merge]:
    """Those of two tokens that make one, all with a row; a token with a space in it is left out as well.

    Such a one is none of the characters that a text is made of before merges, and GGUF cannot write it.
    """

    def there(text: str) -> bool:
        return ids.get(text, n_vocab) < n_vocab

    usable = []
    for merge in merges:
        product = "".join(merge)
        if len(merge) == 2 and " " not in product and all(map(there, (*merge, product))):
            usable.append((merge[0], merge[1]))
        else:
            oddities.count(ABSENT_MERGES)
    return usable


def adds_bos(post_processor: Any) -> bool:
    """Whether a template puts a special token in front of a text."""
    for part in flattened(post_processor, "processors"):
        template = part.get("single")
        if part.get("type") == "TemplateProcessing" and isinstance(template, list) and template:
            return isinstance(template[0], dict) and "SpecialToken" in template[0]
    return False


def flattened(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The parts of a "Sequence", or the part itself; `inner` is what the sequence calls them."""
    pending = [part]
    while pending:
        first = pending.pop(0)
        if not isinstance(first, dict):
            continue
        parts = first.get(inner)
        if first.get("type") == "Sequence" and isinstance(parts, list):
            pending = parts + pending
        else:
            yield first


def normalizer_names(tokenizer: Mapping[str, Any]) -> list[str]:
    """The types of the normalizers, in order."""
    return [str(part.get("type")) for part in flattened(tokenizer.get("normalizer"), "normalizers")]
