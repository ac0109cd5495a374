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
from hotcold.gguf_io.huggingface.vocabulary import Vocabulary, added_tokens, special_id_metadata
from hotcold.gguf_io.writer import MetadataValue, array, boolean, string

FILE = "tokenizer.model"
BPE = 2
NO_SCORE = -1000.0
MAX_BYTES = 100_000_000


def sentencepiece_metadata(
    model_dir: Path, model: HFModel, settings: Mapping[str, Any]
) -> tuple[dict[str, MetadataValue], tuple[str, ...]]:
    """`tokenizer.ggml.*` keys, and warnings.

    Pieces, scores and types are those of tokenizer.model; tokens that were added behind them follow;
    the rest up to the model's n_vocab is filled. Scores of both are -1000, as llama.cpp writes them.

    Args:
        settings: tokenizer_config.json.

    Raises:
        FileError: a file is damaged, the vocabulary is no SentencePiece BPE, has more tokens than the
            model has rows, or a special id is beyond it.
    """
    proto = _read(model_dir / FILE)
    vocabulary = Vocabulary(
        model_dir,
        [piece.piece.encode() for piece in proto.pieces],
        [int(piece.type) for piece in proto.pieces],
    )
    _append(vocabulary, settings)
    vocabulary.fill(model.n_vocab)
    scores = [float(piece.score) for piece in proto.pieces]
    scores += [NO_SCORE] * (len(vocabulary.tokens) - len(scores))
    spec = proto.trainer_spec
    ids = vocabulary.special_ids(
        model, settings, {"bos": spec.bos_id, "eos": spec.eos_id, "unk": spec.unk_id}
    )
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": array(vocabulary.tokens, GGUFValueType.STRING),
        "tokenizer.ggml.scores": array(scores, GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": array(vocabulary.types, GGUFValueType.INT32),
    }
    metadata |= special_id_metadata(ids)
    add_bos = "bos" in ids and settings.get("add_bos_token") is not False
    metadata["tokenizer.ggml.add_bos_token"] = boolean(add_bos)
    metadata["tokenizer.ggml.add_eos_token"] = boolean("eos" in ids and settings.get("add_eos_token") is True)
    metadata["tokenizer.ggml.add_space_prefix"] = boolean(bool(proto.normalizer_spec.add_dummy_prefix))
    return metadata, _warnings(proto)


def _read(path: Path) -> Any:
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
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


def _append(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> None:
    """Tokens with ids behind tokenizer.model's own; those ids must follow without a gap."""
    added, n_pieces = added_tokens(vocabulary.model_dir, settings), len(vocabulary.tokens)
    for number in sorted(number for number in added if number >= n_pieces):
        if number != len(vocabulary.tokens):
            bound = f"the next free id is {len(vocabulary.tokens)}"
            raise FileError(
                f"{vocabulary.model_dir}: added token",
                f"id {number}",
                bound,
                "fetch the tokenizer files again",
            )
        vocabulary.append(*added[number])


def _warnings(proto: Any) -> tuple[str, ...]:
    found = []
    if proto.normalizer_spec.precompiled_charsmap:
        found.append(
            f"tokenizer.model normalises text ({proto.normalizer_spec.name}); GGUF cannot record that"
        )
    if proto.normalizer_spec.remove_extra_whitespaces:
        found.append("tokenizer.model removes repeated spaces; GGUF's llama vocabulary keeps them")
    return tuple(found)
