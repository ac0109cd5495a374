"""A byte-level BPE vocabulary as GGUF metadata, named as llama.cpp names it (`gpt2`).

It comes from tokenizer.json, or from vocab.json and merges.txt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from hotcold.errors import FileError
from hotcold.gguf_io.huggingface import pretokenizer
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    AddedTokens,
    Vocabulary,
    added_tokens,
    padding,
    special_id_metadata,
    utf8,
)
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.pretokenizers import KNOWN
from hotcold.gguf_io.writer import MetadataValue, array, boolean, string

FAST, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
MAX_ID = 2**31 - 1
AGAIN = "fetch the tokenizer files again"
OVERRIDE = f"--force-pretokenizer NAME says which one cuts text alike, {KNOWN}"


@dataclass(frozen=True)
class _Source:
    """What the files say.

    Attributes:
        origin: the file, for messages.
        ids: by text. merges: pairs, most important first.
        pre: llama.cpp's name of the pre-tokenizer, None if none fits; `cuts` describes it.
        adds_bos: whether the first thing of a text is BOS, as far as the files say.
    """

    origin: Path
    ids: dict[str, int]
    merges: list[tuple[str, str]]
    added: AddedTokens
    pre: str | None
    cuts: str
    adds_bos: bool
    warnings: tuple[str, ...] = ()


def bpe_metadata(
    model_dir: Path, model: HFModel, settings: Mapping[str, Any], force_pretokenizer: str | None
) -> tuple[dict[str, MetadataValue], tuple[str, ...]]:
    """`tokenizer.ggml.*` keys, and warnings.

    Ids without a token, up to the model's n_vocab, are filled. Tokens that were added are control
    tokens if they are special or written `<|so|>`, else user-defined, as llama.cpp has it.

    Args:
        settings: tokenizer_config.json.
        force_pretokenizer: a name of `PRETOKENIZERS`, whatever the files say.

    Raises:
        FileError: a file is damaged, is no byte-level BPE, names no pre-tokenizer that is known, has
            merges of absent tokens, more tokens than the model has rows, or a special id beyond them.
    """
    fast = (model_dir / FAST).is_file()
    source = _read_fast(model_dir / FAST) if fast else _read_slow(model_dir, settings)
    pre = force_pretokenizer or source.pre
    if pre is None:
        raise FileError(f"{source.origin}: pre-tokenizer", source.cuts[:300], "no known one", OVERRIDE)
    if not force_pretokenizer:
        pre = dict(model.architecture.pretokenizers).get(pre, pre)
    _check_merges(source)
    vocabulary = Vocabulary(model_dir)
    _fill(vocabulary, source, source.added | added_tokens(model_dir, settings), model.n_vocab)
    ids = vocabulary.special_ids(model, settings, {})
    for number in ids.values():
        vocabulary.types[number] = CONTROL
    add_bos, add_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    add_bos = add_bos if isinstance(add_bos, bool) else source.adds_bos
    merges = [f"{left} {right}" for left, right in source.merges]
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre),
        "tokenizer.ggml.tokens": array(vocabulary.tokens, GGUFValueType.STRING),
        "tokenizer.ggml.token_type": array(vocabulary.types, GGUFValueType.INT32),
        "tokenizer.ggml.merges": array(merges, GGUFValueType.STRING),
    }
    metadata |= special_id_metadata(ids)
    metadata["tokenizer.ggml.add_bos_token"] = boolean("bos" in ids and add_bos)
    metadata["tokenizer.ggml.add_eos_token"] = boolean("eos" in ids and add_eos is True)
    return metadata, source.warnings


def _read_fast(path: Path) -> _Source:
    tokenizer = read_json_object(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = repr(model.get("type"))[:60] if isinstance(model, dict) else "missing"
        raise FileError(f"{path}: model type", kind, "BPE can be converted", "use another model")
    if model.get("byte_fallback") is True and not pretokenizer.is_byte_level(tokenizer):
        next_step = "fetch the tokenizer.model of this model"
        raise FileError(f"{path}: byte_fallback", "true", "a SentencePiece vocabulary", next_step)
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise FileError(f"{path}: {name}", repr(model[name])[:60], "must be empty", "use another model")
    names = pretokenizer.normalizer_names(tokenizer)
    found = pretokenizer.recognise(tokenizer)
    text = f"tokenizer.json normalises text ({', '.join(names)}); GGUF cannot record that"
    return _Source(
        origin=path,
        ids=_checked_ids(path, model.get("vocab")),
        merges=list(_merge_pairs(path, model.get("merges"))),
        added=dict(_listed_tokens(path, tokenizer.get("added_tokens") or [])),
        pre=found.name if found else None,
        cuts=pretokenizer.describe(tokenizer),
        adds_bos=_adds_bos(tokenizer.get("post_processor")),
        warnings=(*((text,) if names else ()), *((found.warning,) if found and found.warning else ())),
    )


def _read_slow(model_dir: Path, settings: Mapping[str, Any]) -> _Source:
    """vocab.json and merges.txt, whose class in tokenizer_config.json says how text is cut."""
    name = settings.get("tokenizer_class")
    name = name.removesuffix("Fast") if isinstance(name, str) else "GPT2Tokenizer"
    prefixed = settings.get("add_prefix_space") is True
    return _Source(
        origin=model_dir / VOCAB,
        ids=_checked_ids(model_dir / VOCAB, read_json_object(model_dir / VOCAB)),
        merges=list(_merge_lines(model_dir / MERGES)),
        added={},
        pre=None if prefixed else pretokenizer.BY_CLASS.get(name),
        cuts=f"{name} with add_prefix_space" if prefixed else name,
        adds_bos=False,
    )


def _checked_ids(path: Path, vocab: Any) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise FileError(f"{path}: vocab", "missing or empty", "an id for each token", AGAIN)
    for text, number in vocab.items():
        if type(number) is not int or not 0 <= number <= MAX_ID:
            what, bound = f"{path}: id of {text[:60]!r}", f"a whole number up to {MAX_ID}"
            raise FileError(what, repr(number)[:60], bound, AGAIN)
    return vocab


def _merge_pairs(path: Path, merges: Any) -> Iterator[tuple[str, str]]:
    """Merges as "a b" or, newer, as ["a", "b"]."""
    if not isinstance(merges, list):
        raise FileError(f"{path}: merges", "missing", "a list of pairs", AGAIN)
    for number, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(map(_is_piece, parts)):
            what = f"{path}: merge {number}"
            raise FileError(what, repr(merge)[:60], "two tokens without spaces", AGAIN)
        yield parts[0], parts[1]


def _is_piece(part: Any) -> bool:
    return isinstance(part, str) and part != "" and " " not in part


def _merge_lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_bytes().decode().split("\n")
    except OSError as error:
        raise FileError(str(path), error.strerror or "cannot be read", "", "check the path") from error
    except UnicodeDecodeError as error:
        raise FileError(str(path), "no UTF-8", "one merge a line", AGAIN) from error
    first = 1 if lines[0].startswith("#version") else 0
    yield from _merge_pairs(path, [line.removesuffix("\r") for line in lines[first:] if line.strip()])


def _listed_tokens(path: Path, entries: Any) -> Iterator[tuple[int, tuple[bytes, int]]]:
    """added_tokens of tokenizer.json."""
    for entry in entries if isinstance(entries, list) else [entries]:
        number, text = (entry.get("id"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if type(number) is not int or not 0 <= number <= MAX_ID or not isinstance(text, str):
            bound = "an id and a text each"
            raise FileError(f"{path}: added_tokens", repr(entry)[:60], bound, AGAIN)
        kind = CONTROL if entry.get("special") is True else USER_DEFINED
        yield number, (utf8(text, f"{path}: added token {number}"), kind)


def _adds_bos(post_processor: Any) -> bool:
    """Whether a template puts a special token in front of a text."""
    for part in pretokenizer.flattened(post_processor, "processors"):
        template = part.get("single")
        if part.get("type") == "TemplateProcessing" and isinstance(template, list) and template:
            return isinstance(template[0], dict) and "SpecialToken" in template[0]
    return False


def _fill(vocabulary: Vocabulary, source: _Source, added: AddedTokens, n_vocab: int) -> None:
    """Fills `vocabulary` with the tokens by id, each text once, and with padding where there is none."""
    pieces = _by_id(source)
    vocabulary.check_count(max([*pieces, *added]) + 1, n_vocab)
    numbers: dict[bytes, int] = {}
    for number in range(n_vocab):
        token, kind = _token(source, pieces.get(number), added.get(number), number)
        if (first := numbers.setdefault(token, number)) != number:
            bound = f"token {first} is the same"
            raise FileError(f"{source.origin}: token {number}", _shown(token), bound, AGAIN)
        vocabulary.append(token, kind)


def _by_id(source: _Source) -> dict[int, bytes]:
    pieces: dict[int, bytes] = {}
    for text, number in source.ids.items():
        if number in pieces:
            found = f"{_shown(pieces[number])} and {text!r}"[:100]
            raise FileError(f"{source.origin}: id {number}", found, "one token each", AGAIN)
        pieces[number] = utf8(text, f"{source.origin}: token {number}")
    return pieces


def _token(
    source: _Source, piece: bytes | None, added: tuple[bytes, int] | None, number: int
) -> tuple[bytes, int]:
    """The token of an id and its type: the vocabulary's piece, which an added token may only repeat."""
    if added is None:
        return (padding(number), UNUSED) if piece is None else (piece, NORMAL)
    token, kind = added
    if piece is not None and piece != token:
        bound = f"the vocabulary has {_shown(piece)} there"
        raise FileError(f"{source.origin}: added token {number}", _shown(token), bound, AGAIN)
    return token, CONTROL if _looks_special(token) else kind


def _looks_special(text: bytes) -> bool:
    return text.startswith(b"<|") and text.endswith(b"|>")


def _check_merges(source: _Source) -> None:
    """Every merge is of tokens and makes one."""
    for left, right in source.merges:
        for piece in (left, right, left + right):
            if piece not in source.ids:
                what = f"{source.origin}: merge {left} {right}"[:200]
                raise FileError(what, "cannot be made", f"there is no token {piece}"[:100], AGAIN)


def _shown(text: bytes) -> str:
    """A token for a message."""
    return repr(text.decode(errors="replace"))[:60]
