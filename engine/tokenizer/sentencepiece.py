"""SentencePiece BPE vocabularies (`tokenizer.ggml.model` = llama), run by the sentencepiece library."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hotcold.engine.tokenizer.pieces import PieceTokenizer
from hotcold.engine.tokenizer.vocabulary import (
    BYTE,
    UNKNOWN,
    UNUSED,
    Vocabulary,
    byte_ids,
    damaged,
    flag,
    read_vocabulary,
    scores,
)
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.oddities import EQUAL_PIECES, Oddities

SPACE = "\u2581".encode()  # SentencePiece's sign for a space
BPE_MODEL = 2  # TrainerSpec.ModelType of sentencepiece_model.proto


class SentencePieceTokenizer(PieceTokenizer):
    """A vocabulary and its encoder.

    The space in front of text follows llama.cpp: each run of plain text that starts the input or follows
    a special piece gets one.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        scores: Sequence[float],
        *,
        add_space_prefix: bool = True,
        warnings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(vocabulary, warnings)
        self.add_space_prefix = add_space_prefix
        self._byte_ids = byte_ids(self.tokens, self.types)
        self._encode = _library_encoder(
            self.tokens, scores, self.types, vocabulary.unknown, bool(self._byte_ids)
        )

    def fewest_tokens(self, n_bytes: int) -> int:
        """As in other kinds, but for bytes without a piece, which run together as one unknown piece."""
        return super().fewest_tokens(n_bytes) if self._byte_ids else 0

    def decode(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """Bytes of all tokens, without the space that encoding put in front of the first one shown."""
        shown = [p for p in (self.piece(token, special=special) for token in ids) if p]
        if shown and self.add_space_prefix:
            shown[0] = shown[0].removeprefix(b" ")
        return b"".join(shown)

    def _normal_piece(self, text: bytes) -> bytes:
        return text.replace(SPACE, b" ")

    def _encode_plain(self, data: bytes, after_special: bool) -> list[int]:
        prefix = b" " if after_special and self.add_space_prefix else b""
        return super()._encode_plain(prefix + data, after_special)

    def _encode_text(self, text: str) -> list[int]:
        return self._encode(text)

    def _encode_bytes(self, data: bytes) -> list[int]:
        if not self._byte_ids:
            raise SettingError(
                "text", data[:16], "no UTF-8, and the vocabulary has no byte pieces", "give the text as UTF-8"
            )
        return [self._byte_ids[byte] for byte in data]


def _library_encoder(
    tokens: list[bytes], scores: Sequence[float], types: list[int], unknown: int | None, byte_fallback: bool
) -> Callable[[str], list[int]]:
    """sentencepiece's encoder for these pieces; it neither adds a space nor any special id."""
    import sentencepiece

    proto = _model_proto(tokens, scores, types, unknown, byte_fallback)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(proto.SerializeToString())
    except RuntimeError as error:
        bound = "the sentencepiece library refuses it"
        raise FileError("vocabulary", str(error)[:120], bound, "convert the model again") from error

    def encode(text: str) -> list[int]:
        return [int(token) for token in processor.EncodeAsIds(text)]

    return encode


def _model_proto(
    tokens: list[bytes], scores: Sequence[float], types: list[int], unknown: int | None, byte_fallback: bool
) -> Any:
    """A ModelProto of sentencepiece_model.proto that takes text as it is."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made when imported
    proto.trainer_spec.model_type = BPE_MODEL
    proto.trainer_spec.byte_fallback = byte_fallback
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    kinds = _library_types(types, unknown, byte_fallback)
    for text, score, kind in zip(_library_pieces(tokens), scores, kinds, strict=True):
        unused = text is None and kind != UNKNOWN
        proto.pieces.add(piece=text or "", score=score, type=UNUSED if unused else kind)
    for token, piece in enumerate(proto.pieces):
        if not piece.piece:
            piece.piece = f"\ue000{token}"
    if UNKNOWN not in kinds:
        proto.pieces.add(piece="\ue000", score=0.0, type=UNKNOWN)
    return proto


def _library_pieces(tokens: list[bytes]) -> list[str | None]:
    """Texts for the library, which takes each text once and only UTF-8 without NUL: None for the others.

    Of equal texts the last one counts, as in llama.cpp.
    """
    last = {text: token for token, text in enumerate(tokens)}
    pieces: list[str | None] = []
    for token, text in enumerate(tokens):
        try:
            usable = text and b"\0" not in text and last[text] == token
            pieces.append(text.decode() if usable else None)
        except UnicodeDecodeError:
            pieces.append(None)
    return pieces


def _library_types(types: list[int], unknown: int | None, byte_fallback: bool) -> list[int]:
    """Types for the library, which wants exactly one unknown piece, and all byte pieces or none."""
    unknowns = [token for token, kind in enumerate(types) if kind == UNKNOWN]
    if unknown is None and unknowns:
        unknown = unknowns[0]
    kinds = list(types)
    for token in unknowns:
        kinds[token] = UNUSED
    if not byte_fallback:
        kinds = [UNUSED if kind == BYTE else kind for kind in kinds]
    if unknown is not None:
        kinds[unknown] = UNKNOWN
    return kinds


def load(
    file: GGUFFile, force_pretokenizer: str | None = None, n_rows: int | None = None
) -> SentencePieceTokenizer:
    """The tokenizer of a file whose `tokenizer.ggml.model` is llama; n_rows as in `read_vocabulary`.

    Raises:
        FileError: metadata that are missing or damaged.
        SettingError: a pre-tokenizer, which these vocabularies do not have.
    """
    if force_pretokenizer is not None:
        bound = f"{file.path.name} has a SentencePiece vocabulary, which uses none"
        raise SettingError("force_pretokenizer", force_pretokenizer, bound, "leave it out")
    oddities = Oddities()
    vocabulary = read_vocabulary(file, oddities, add_bos=True, n_rows=n_rows)
    tokens, types = vocabulary.tokens, vocabulary.types
    if vocabulary.unknown is None and UNKNOWN not in types and not byte_ids(tokens, types):
        raise damaged(file, "token_type", "no unknown piece", "one, or pieces for all 256 bytes")
    texts = [text for text in tokens if text]
    oddities.count(EQUAL_PIECES, len(texts) - len(set(texts)))
    return SentencePieceTokenizer(
        vocabulary,
        scores(file, len(tokens)),
        add_space_prefix=flag(file, "add_space_prefix", True),
        warnings=oddities.warnings(),
    )
