"""A SentencePiece vocabulary (tokenizer.model) as GGUF metadata, named as llama.cpp names it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFValueType
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from hotcold.errors import FileError
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.tokenizer_json import FILE as TOKENIZER_JSON
from hotcold.gguf_io.huggingface.vocabulary import (
    SPACE,
    USER_DEFINED,
    HFVocabulary,
    Tokens,
    added_tokens,
    special_id_metadata,
)
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.writer import MetadataValue, array, boolean, string

FILE = "tokenizer.model"
BPE = 2
NO_SCORE = -1000.0
MAX_BYTES = 100_000_000


def sentencepiece_metadata(
    model_dir: Path, model: HFModel, settings: Mapping[str, Any]
) -> tuple[dict[str, MetadataValue], HFVocabulary, tuple[str, ...]]:
    """`tokenizer.ggml.*` keys, the vocabulary, and warnings.

    Pieces, scores and types are those of tokenizer.model, but where a token was added in their range;
    those that were added behind them follow; the rest up to the model's n_vocab is filled. Scores of both
    are -1000, as llama.cpp writes them.

    Args:
        settings: tokenizer_config.json.

    Raises:
        FileError: a file is damaged, the vocabulary is no SentencePiece BPE, has many more tokens than the
            model has rows, or a special id is beyond it.
    """
    proto = _read(model_dir / FILE)
    vocabulary = HFVocabulary(model_dir)
    pieces = {n: (piece.piece.encode(), int(piece.type)) for n, piece in enumerate(proto.pieces)}
    added = added_tokens(model_dir, settings, _listed(model_dir, pieces))
    vocabulary.fill(pieces, added, model.n_vocab, replace=True)
    scores = [float(piece.score) for piece in proto.pieces[: model.n_vocab]]
    spec = proto.trainer_spec
    ids = vocabulary.special_ids(
        model, settings, {"bos": spec.bos_id, "eos": spec.eos_id, "unk": spec.unk_id}
    )
    add_bos = settings.get("add_bos_token") is not False
    prefix = bool(proto.normalizer_spec.add_dummy_prefix)
    metadata = llama_metadata(vocabulary, scores, ids, settings, add_bos=add_bos, add_space_prefix=prefix)
    return metadata, vocabulary, _warnings(proto)


def _listed(model_dir: Path, pieces: Tokens) -> Any:
    """`added_tokens` of a tokenizer.json beside it, if that has the same pieces."""
    path = model_dir / TOKENIZER_JSON
    listed = read_json_object(path, lambda n: None).get("added_tokens") if path.exists() else None
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    texts = {entry.get("id"): entry.get("content") for entry in entries}
    same = all(texts.get(number, text.decode()) == text.decode() for number, (text, _) in pieces.items())
    return listed if same else None


def llama_metadata(
    vocabulary: HFVocabulary,
    scores: list[float],
    ids: Mapping[str, int],
    settings: Mapping[str, Any],
    *,
    add_bos: bool,
    add_space_prefix: bool,
) -> dict[str, MetadataValue]:
    """The keys of a vocabulary as GGUF calls it `llama`.

    Args:
        scores: of the first tokens; the rest have none.
        ids: of special tokens.
    """
    # a piece that is looked for in text before spaces become signs is written with them
    tokens = [
        token.replace(SPACE.encode(), b" ") if kind == USER_DEFINED else token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]
    scores = scores + [NO_SCORE] * (len(tokens) - len(scores))
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": array(tokens, GGUFValueType.STRING),
        "tokenizer.ggml.scores": array(scores, GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": array(vocabulary.types, GGUFValueType.INT32),
    }
    metadata |= special_id_metadata(ids)
    metadata["tokenizer.ggml.add_bos_token"] = boolean("bos" in ids and add_bos)
    metadata["tokenizer.ggml.add_eos_token"] = boolean("eos" in ids and settings.get("add_eos_token") is True)
    metadata["tokenizer.ggml.add_space_prefix"] = boolean(add_space_prefix)
    return metadata


def _read(path: Path) -> Any:
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made when imported
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileError(
                str(path), f"{path.stat().st_size} bytes", f"at most {MAX_BYTES}", "fetch the file again"
            )
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise FileError(str(path), error.strerror or "cannot be read", "", "check the path") from error
    except DecodeError as error:
        raise FileError(
            str(path), "no SentencePiece model", "", "fetch the tokenizer.model of this model"
        ) from error
    if not proto.pieces:
        raise FileError(str(path), "0 pieces", "at least 1", "fetch the tokenizer.model of this model")
    if proto.trainer_spec.model_type != BPE:
        kind = f"model type {proto.trainer_spec.model_type}"
        raise FileError(
            str(path), kind, "GGUF's llama vocabulary is BPE (2)", "use a model with a BPE tokenizer"
        )
    for number, piece in enumerate(proto.pieces):
        if not isinstance(piece.piece, str) or not math.isfinite(piece.score):
            bound = "UTF-8 text and a finite score"
            raise FileError(f"{path}: piece {number}", repr(piece.piece)[:60], bound, "fetch the file again")
    return proto


def _warnings(proto: Any) -> tuple[str, ...]:
    found = []
    if proto.normalizer_spec.precompiled_charsmap:
        found.append(
            f"tokenizer.model normalises text ({proto.normalizer_spec.name}); GGUF cannot record that"
        )
    if proto.normalizer_spec.remove_extra_whitespaces:
        found.append("tokenizer.model removes repeated spaces; GGUF's llama vocabulary keeps them")
    return tuple(found)
