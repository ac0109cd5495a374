"""A tokenizer.json of the Llama kind as GGUF metadata: pieces of text, and mostly of bytes for the rest.

SentencePiece joins any two neighbours that make a piece, the one with the highest score first; the file
has a list of merges, the most important first. So the score of a piece is the place of its first merge.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotcold.errors import FileError
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.sentencepiece import llama_metadata
from hotcold.gguf_io.huggingface.tokenizer_json import (
    Merge,
    adds_bos,
    bpe_model,
    by_id,
    checked_ids,
    flattened,
    merge_pairs,
    usable_merges,
)
from hotcold.gguf_io.huggingface.vocabulary import (
    BYTE,
    NORMAL,
    SPACE,
    UNKNOWN,
    HFVocabulary,
    Tokens,
    added_tokens,
)
from hotcold.gguf_io.oddities import UNMADE, UNNAMED_PAIRS, Oddities
from hotcold.gguf_io.writer import MetadataValue

BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
ONE_SPACE = {"String": " "}  # Gemma's cuts there, of no effect where spaces are signs already


def is_llama_kind(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind: pieces are text, whose spaces are written as signs."""
    model = tokenizer.get("model")
    parts = list(flattened(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    if any(part.get("type") == "ByteLevel" for part in parts) or not isinstance(model, dict):
        return False
    parts += flattened(tokenizer.get("normalizer"), "normalizers")
    return model.get("byte_fallback") is True or any(map(_writes_signs, parts))


def _writes_signs(part: Mapping[str, Any]) -> bool:
    if part.get("type") == "Metaspace":
        return bool(part.get("replacement", SPACE) == SPACE)
    return part.get("type") == "Replace" and part.get("pattern") == ONE_SPACE and part.get("content") == SPACE


def llama_kind_metadata(
    path: Path,
    tokenizer: Mapping[str, Any],
    model: HFModel,
    settings: Mapping[str, Any],
    oddities: Oddities,
) -> tuple[dict[str, MetadataValue], HFVocabulary, tuple[str, ...]]:
    """`tokenizer.ggml.*` keys, the vocabulary, and warnings.

    Args:
        path, tokenizer: tokenizer.json. settings: tokenizer_config.json.
        oddities: what was mended in reading it.

    Raises:
        FileError: damaged pieces, a way to write spaces that GGUF cannot say, many more tokens than the
            model has rows, or a special id beyond them.
    """
    inner = bpe_model(path, tokenizer)
    ids = checked_ids(path, inner.get("vocab"))
    unknown, falls_back = inner.get("unk_token"), inner.get("byte_fallback") is True
    pieces: Tokens = {
        number: (text, _kind(text.decode(), unknown, falls_back))
        for number, (text, _) in by_id(path, ids).items()
    }
    vocabulary = HFVocabulary(path.parent, oddities=oddities)
    added = added_tokens(path.parent, settings, tokenizer.get("added_tokens"))
    vocabulary.fill(pieces, added, model.n_vocab, replace=False)
    merges = usable_merges(merge_pairs(path, inner.get("merges")), ids, model.n_vocab, vocabulary.oddities)
    prefix, warnings = _spaces(path, tokenizer)
    scores = _scores(vocabulary, merges)
    _count_other_pairs(vocabulary, merges)
    trained = {"unk": ids[unknown]} if isinstance(unknown, str) and unknown in ids else {}
    specials = vocabulary.special_ids(model, settings, trained)
    metadata = llama_metadata(
        vocabulary,
        scores,
        specials,
        settings,
        add_bos=_adds_bos(tokenizer, settings),
        add_space_prefix=prefix,
    )
    return metadata, vocabulary, warnings


def _kind(text: str, unknown: Any, falls_back: bool) -> int:
    if text == unknown:
        return UNKNOWN
    return BYTE if falls_back and BYTE_PIECE.fullmatch(text) else NORMAL


def _spaces(path: Path, tokenizer: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether a space goes in front of a text, and a warning of what else is done to it."""
    prefix = signs = False
    others = []
    for part in flattened(tokenizer.get("normalizer"), "normalizers"):
        if part.get("type") == "Prepend" and part.get("prepend") == SPACE:
            prefix = True
        elif _writes_signs(part):
            signs = True
        else:
            others.append(str(part.get("type")))
    for part in flattened(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if _writes_signs(part):
            signs, always = True, part.get("add_prefix_space", True)
            prefix = part.get("prepend_scheme", "always" if always else "never") != "never"
        elif part.get("pattern") != ONE_SPACE:
            what, kind = f"{path}: pre-tokenizer", str(part.get("type"))[:60]
            raise FileError(what, kind, "Metaspace or none beside pieces of text", "use another model")
    if not signs:
        what, bound = f"{path}: spaces", f"GGUF's llama vocabulary writes them as {SPACE}"
        raise FileError(what, "kept as they are", bound, "use another model")
    text = f"tokenizer.json normalises text ({', '.join(others)}); GGUF cannot record that"
    return prefix, (text,) if others else ()


def _scores(vocabulary: HFVocabulary, merges: list[Merge]) -> list[float]:
    """The later a piece is made the lower; what no merge makes is below all."""
    made: dict[bytes, int] = {}
    for rank, (left, right) in enumerate(merges):
        made.setdefault((left + right).encode(), rank)
    return [-float(made.get(token, len(merges))) for token in vocabulary.tokens]


def _count_other_pairs(vocabulary: HFVocabulary, merges: list[Merge]) -> None:
    """What SentencePiece would join, and no merge does."""
    texts = {
        token.decode(errors="replace")
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind == NORMAL
    }
    listed = set(merges)
    made = {left + right for left, right in merges}
    pairs = {
        (text[:at], text[at:])
        for text in texts
        for at in range(1, len(text))
        if text[:at] in texts and text[at:] in texts
    }
    vocabulary.oddities.count(UNMADE, len({left + right for left, right in pairs} - made))
    vocabulary.oddities.count(UNNAMED_PAIRS, sum(left + right in made for left, right in pairs - listed))


def _adds_bos(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """As the settings say, else as the template does; without both Llama's classes put it in front."""
    if isinstance(says := settings.get("add_bos_token"), bool):
        return says
    if tokenizer.get("post_processor") is not None:
        return adds_bos(tokenizer["post_processor"])
    return str(settings.get("tokenizer_class")).startswith(("Llama", "CodeLlama", "Gemma"))
