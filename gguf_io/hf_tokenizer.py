"""A SentencePiece vocabulary as GGUF metadata, named as llama.cpp names it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from hotcold.errors import FileError
from hotcold.gguf_io.hf_model import HFModel
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.writer import MetadataValue, array, boolean, string, uint32

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
BPE = 2
NO_SCORE = -1000.0
MAX_BYTES = 100_000_000


@dataclass
class _Vocabulary:
    """Pieces by id; types are SentencePiece's numbers, which are GGUF's too."""

    tokens: list[bytes]
    scores: list[float]
    types: list[int]

    def append(self, token: bytes, kind: int) -> None:
        self.tokens.append(token)
        self.scores.append(NO_SCORE)
        self.types.append(kind)


def tokenizer_metadata(model_dir: Path, config: HFModel) -> tuple[dict[str, MetadataValue], tuple[str, ...]]:
    """`tokenizer.*` keys of `model_dir`, and warnings.

    Pieces, scores and types are those of tokenizer.model; tokens that were added behind them
    (added_tokens.json, tokenizer_config.json) follow; the rest up to the model's n_vocab is filled
    with unused `[PAD{id}]`. Scores of both are -1000, as llama.cpp writes them. Special ids come from
    tokenizer_config.json, else config.json, else tokenizer.model.

    Raises:
        FileError: a file is damaged, the vocabulary is no SentencePiece BPE, has more tokens than the
            model has rows, or a special id is beyond it.
    """
    model = _read_model(model_dir / "tokenizer.model")
    settings = _optional_json(model_dir / "tokenizer_config.json")
    vocabulary = _Vocabulary(
        [piece.piece.encode() for piece in model.pieces],
        [float(piece.score) for piece in model.pieces],
        [int(piece.type) for piece in model.pieces],
    )
    _add_tokens(vocabulary, model_dir, settings)
    _fill(vocabulary, model_dir, config.n_vocab)
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": array(vocabulary.tokens, GGUFValueType.STRING),
        "tokenizer.ggml.scores": array(vocabulary.scores, GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": array(vocabulary.types, GGUFValueType.INT32),
    }
    metadata |= _special_ids(vocabulary, model, settings, config, model_dir)
    metadata["tokenizer.ggml.add_bos_token"] = boolean(
        "tokenizer.ggml.bos_token_id" in metadata and settings.get("add_bos_token") is not False
    )
    metadata["tokenizer.ggml.add_eos_token"] = boolean(
        "tokenizer.ggml.eos_token_id" in metadata and settings.get("add_eos_token") is True
    )
    metadata["tokenizer.ggml.add_space_prefix"] = boolean(bool(model.normalizer_spec.add_dummy_prefix))
    if isinstance(template := settings.get("chat_template"), str) and template:
        metadata["tokenizer.chat_template"] = string(template)
    return metadata, _warnings(model)


def _read_model(path: Path) -> Any:
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileError(
                str(path), f"{path.stat().st_size} bytes", f"at most {MAX_BYTES}", "fetch the file again"
            )
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise FileError(str(path), error.strerror or "cannot be read", "", "check the path") from error
    except DecodeError as error:
        raise FileError(
            str(path), "no SentencePiece model", "", "fetch the tokenizer.model of this model"
        ) from error
    if not model.pieces:
        raise FileError(str(path), "0 pieces", "at least 1", "fetch the tokenizer.model of this model")
    if model.trainer_spec.model_type != BPE:
        kind = f"model type {model.trainer_spec.model_type}"
        raise FileError(
            str(path), kind, "GGUF's llama vocabulary is BPE (2)", "use a model with a BPE tokenizer"
        )
    for number, piece in enumerate(model.pieces):
        if not isinstance(piece.piece, str) or not math.isfinite(piece.score):
            bound = "UTF-8 text and a finite score"
            raise FileError(f"{path}: piece {number}", repr(piece.piece)[:60], bound, "fetch the file again")
    return model


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _add_tokens(vocabulary: _Vocabulary, model_dir: Path, settings: dict[str, Any]) -> None:
    """Tokens with ids behind tokenizer.model's own; those ids must follow without a gap."""
    kinds: dict[int, tuple[bytes, int]] = {}
    for text, number in _optional_json(model_dir / "added_tokens.json").items():
        if type(number) is int:
            kinds[number] = (text.encode(), USER_DEFINED)
    decoder = settings.get("added_tokens_decoder")
    for number, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if number.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            kind = CONTROL if entry.get("special") is True else USER_DEFINED
            kinds[int(number)] = (entry["content"].encode(), kind)
    n_pieces = len(vocabulary.tokens)
    for number in sorted(number for number in kinds if number >= n_pieces):
        if number != len(vocabulary.tokens):
            bound = f"the next free id is {len(vocabulary.tokens)}"
            raise FileError(
                f"{model_dir}: added token", f"id {number}", bound, "fetch the tokenizer files again"
            )
        vocabulary.append(*kinds[number])


def _fill(vocabulary: _Vocabulary, model_dir: Path, n_vocab: int) -> None:
    if len(vocabulary.tokens) > n_vocab:
        count = f"{len(vocabulary.tokens)} tokens"
        raise FileError(
            f"tokenizer of {model_dir}", count, f"config.json: vocab_size {n_vocab}", "use its own tokenizer"
        )
    for number in range(len(vocabulary.tokens), n_vocab):
        vocabulary.append(f"[PAD{number}]".encode(), UNUSED)


def _special_ids(
    vocabulary: _Vocabulary, model: Any, settings: dict[str, Any], config: HFModel, model_dir: Path
) -> dict[str, MetadataValue]:
    trained = {
        "bos": model.trainer_spec.bos_id,
        "eos": model.trainer_spec.eos_id,
        "unk": model.trainer_spec.unk_id,
    }
    keys = {
        "bos": "bos_token_id",
        "eos": "eos_token_id",
        "unk": "unknown_token_id",
        "pad": "padding_token_id",
    }
    metadata = {}
    for name, key in keys.items():
        number = _named_id(vocabulary, settings.get(f"{name}_token"))
        number = config.token_ids.get(name, trained.get(name, -1)) if number is None else number
        if number >= len(vocabulary.tokens):
            bound = f"the vocabulary has {len(vocabulary.tokens)} tokens"
            raise FileError(f"{model_dir}: {name} id", number, bound, "correct config.json")
        if number >= 0:
            metadata[f"tokenizer.ggml.{key}"] = uint32(number)
    return metadata


def _named_id(vocabulary: _Vocabulary, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or text.encode() not in vocabulary.tokens:
        return None
    return vocabulary.tokens.index(text.encode())


def _warnings(model: Any) -> tuple[str, ...]:
    found = []
    if model.normalizer_spec.precompiled_charsmap:
        found.append(
            f"tokenizer.model normalises text ({model.normalizer_spec.name}); GGUF cannot record that"
        )
    if model.normalizer_spec.remove_extra_whitespaces:
        found.append("tokenizer.model removes repeated spaces; GGUF's llama vocabulary keeps them")
    return tuple(found)
