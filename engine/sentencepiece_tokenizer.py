"""SentencePiece BPE vocabularies (`tokenizer.ggml.model` = llama), run by the sentencepiece library."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import GGUFFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581".encode()  # SentencePiece's sign for a space
BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")
UTF8 = re.compile(  # the well-formed sequences of the Unicode standard, table 3-7
    rb"(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2})++"
)
LENGTH_BY_LEAD = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4)  # by the upper four bits
BPE_MODEL = 2  # TrainerSpec.ModelType of sentencepiece_model.proto
MAX_TOKENS = 1 << 24


class SentencePieceTokenizer:
    """A vocabulary and its encoder.

    Splitting at special pieces and the space in front of text follow llama.cpp: user-defined pieces are
    always found in the text, control pieces and the unknown piece only with `parse_special`, longest
    piece first; each run of plain text that starts the input or follows such a piece gets a space.

    Attributes:
        tokens: bytes of each piece. types: GGUF's token types 1 to 6.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        scores: Sequence[float],
        types: Sequence[int],
        *,
        bos: int | None = None,
        eos: int | None = None,
        unknown: int | None = None,
        end_ids: Iterable[int] = (),
        add_bos: bool = True,
        add_eos: bool = False,
        add_space_prefix: bool = True,
    ) -> None:
        self.tokens, self.types = list(tokens), list(types)
        self.n_vocab, self.bos, self.eos = len(self.tokens), bos, eos
        self.end_ids = frozenset(end_ids) | (frozenset() if eos is None else {eos})
        self.add_bos, self.add_eos, self.add_space_prefix = add_bos, add_eos, add_space_prefix
        self._byte_ids = byte_ids(self.tokens, self.types)
        self._specials = _specials(self.tokens, self.types)
        self._longest = max(1, *map(len, self.tokens))
        self._encode = _library_encoder(self.tokens, scores, self.types, unknown, bool(self._byte_ids))

    def encode(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Ids of `text`.

        Args:
            text: bytes that are no UTF-8 become byte tokens.
            add_special: put BOS in front (and EOS behind) if the model asks for it.
            parse_special: find control pieces such as `</s>` in the text.
        """
        data = _as_bytes(text) if isinstance(text, str) else bytes(text)
        ids = [self.bos] if add_special and self.add_bos and self.bos is not None else []
        after_special = True
        for part in self._split(data, parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                prefix = b" " if after_special and self.add_space_prefix else b""
                ids += self._encode_plain(prefix + part)
            after_special = isinstance(part, int)
        if add_special and self.add_eos and self.eos is not None:
            ids.append(self.eos)
        return ids

    def fewest_tokens(self, n_bytes: int) -> int:
        """A lower bound of the tokens of any text of `n_bytes` bytes.

        No piece stands for more bytes than it has; only where bytes without a piece run together as one
        unknown piece is there no bound.
        """
        return -(-n_bytes // self._longest) if self._byte_ids else 0

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes that a token stands for; control pieces and the unknown piece only if `special`."""
        text, kind = self.tokens[token], self.types[token]
        if kind == BYTE:
            match = BYTE_PIECE.fullmatch(text)
            return bytes([int(match[1], 16)]) if match else b""
        if kind in (CONTROL, UNKNOWN):
            return text if special else b""
        if kind == USER_DEFINED:
            return text
        return text.replace(SPACE, b" ") if kind == NORMAL else b""

    def decode(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """Bytes of all tokens, without the space that encoding put in front of the first one shown."""
        shown = [p for p in (self.piece(token, special=special) for token in ids) if p]
        if shown and self.add_space_prefix:
            shown[0] = shown[0].removeprefix(b" ")
        return b"".join(shown)

    def _split(self, data: bytes, parse_special: bool) -> list[bytes | int]:
        """Runs of plain text, none empty, and the ids of special pieces between them."""
        parts: list[bytes | int] = [data] if data else []
        for text, token in self._specials:
            if (parse_special or self.types[token] == USER_DEFINED) and text in data:
                parts = [piece for part in parts for piece in _split_at(part, text, token)]
        return parts

    def _encode_plain(self, data: bytes) -> list[int]:
        ids: list[int] = []
        for valid, text in _utf8_runs(data):
            ids += self._encode(text.decode()) if valid else self._encode_bytes(text)
        return ids

    def _encode_bytes(self, data: bytes) -> list[int]:
        if not self._byte_ids:
            raise SettingError(
                "text", data[:16], "no UTF-8, and the vocabulary has no byte pieces", "give the text as UTF-8"
            )
        return [self._byte_ids[byte] for byte in data]


def _as_bytes(text: str) -> bytes:
    """UTF-8; a command line's bytes that were none come as lone surrogates and are put back."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _split_at(part: bytes | int, text: bytes, token: int) -> Iterator[bytes | int]:
    if isinstance(part, int):
        yield part
        return
    for number, run in enumerate(part.split(text)):
        if number:
            yield token
        if run:
            yield run


def _utf8_runs(data: bytes) -> Iterator[tuple[bool, bytes]]:
    """Cut `data` into (is valid UTF-8, run), no run empty.

    As in llama.cpp a lead byte takes along as many bytes as it announces, even where they do not
    continue it: all of them are bytes then.
    """
    position = 0
    while position < len(data):
        match = UTF8.match(data, position)
        end = match.end() if match else min(position + LENGTH_BY_LEAD[data[position] >> 4], len(data))
        yield match is not None, data[position:end]
        position = end


def _specials(tokens: list[bytes], types: list[int]) -> list[tuple[bytes, int]]:
    """Pieces that are found in text before anything else, longest first."""
    kinds = (CONTROL, UNKNOWN, USER_DEFINED)
    found = [(text, i) for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind in kinds]
    return sorted(((text, i) for text, i in found if text), key=lambda special: -len(special[0]))


def byte_ids(tokens: list[bytes], types: list[int]) -> list[int]:
    """Ids of the byte pieces 0 to 255; empty unless all are there."""
    found: dict[int, int] = {}
    for token, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        match = BYTE_PIECE.fullmatch(text) if kind == BYTE else None
        if match:
            found[int(match[1], 16)] = token
    return [found[byte] for byte in range(256)] if len(found) == 256 else []


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

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
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


def load(file: GGUFFile) -> SentencePieceTokenizer:
    """The tokenizer of a file whose `tokenizer.ggml.model` is llama.

    Raises:
        FileError: metadata that are missing or damaged.
    """
    tokens = _tokens(file)
    types = _token_types(file, tokens)
    unknown = _special_id(file, "unknown", len(tokens))
    if unknown is None and UNKNOWN not in types and not byte_ids(tokens, types):
        raise _damaged(file, "token_type", "no unknown piece", "one, or pieces for all 256 bytes")
    ends = {_special_id(file, name, len(tokens)) for name in ("eot", "eom")} - {None}
    bos, eos = _special_id(file, "bos", len(tokens)), _special_id(file, "eos", len(tokens))
    return SentencePieceTokenizer(
        tokens,
        _scores(file, len(tokens)),
        types,
        bos=bos,
        eos=eos,
        unknown=unknown,
        end_ids=[token for token in ends if token is not None],
        add_bos=_flag(file, "add_bos_token", True),
        add_eos=_flag(file, "add_eos_token", False),
        add_space_prefix=_flag(file, "add_space_prefix", True),
    )


def _damaged(file: GGUFFile, key: str, value: object, bound: str) -> FileError:
    return FileError(f"{file.path.name}: tokenizer.ggml.{key}", value, bound, "convert the model again")


def _tokens(file: GGUFFile) -> list[bytes]:
    array = file.get_array("tokenizer.ggml.tokens")
    if not 1 <= len(array) <= MAX_TOKENS:
        raise _damaged(file, "tokens", f"{len(array)} pieces", f"1 to {MAX_TOKENS}")
    tokens = list(array)
    if not all(isinstance(token, bytes) for token in tokens):
        raise _damaged(file, "tokens", "numbers", "text")
    return tokens


def _scores(file: GGUFFile, n_vocab: int) -> list[float]:
    """Scores by id: a merge with a higher score comes first."""
    scores = np.asarray(file.get_array("tokenizer.ggml.scores"))
    if scores.dtype.kind not in "fiu" or scores.shape != (n_vocab,):
        raise _damaged(file, "scores", f"{scores.size} of {scores.dtype}", f"{n_vocab} numbers")
    if np.isnan(scores).any():
        raise _damaged(file, "scores", "nan", "numbers")
    return [float(score) for score in scores]


def _token_types(file: GGUFFile, tokens: list[bytes]) -> list[int]:
    """Types by id; without the array every piece is normal but those named like bytes."""
    if "tokenizer.ggml.token_type" not in file.metadata:
        return [BYTE if BYTE_PIECE.fullmatch(text) else NORMAL for text in tokens]
    types = np.asarray(file.get_array("tokenizer.ggml.token_type"))
    if types.dtype.kind not in "iu" or types.shape != (len(tokens),):
        raise _damaged(file, "token_type", f"{types.size} of {types.dtype}", f"{len(tokens)} whole numbers")
    for kind in np.unique(types):
        if not NORMAL <= kind <= BYTE:
            raise _damaged(file, "token_type", int(kind), f"{NORMAL} to {BYTE}")
    for token in np.flatnonzero(types == BYTE):
        if not BYTE_PIECE.fullmatch(tokens[token]):
            shown = tokens[token][:32].decode(errors="backslashreplace")
            raise _damaged(file, f"tokens[{token}]", shown, "byte pieces are <0x00> to <0xFF>")
    return [int(kind) for kind in types]


def _special_id(file: GGUFFile, name: str, n_vocab: int) -> int | None:
    """Id of a special token. Some files write -1, as a number without a sign, for none."""
    key = f"{name}_token_id"
    if f"tokenizer.ggml.{key}" not in file.metadata:
        return None
    token: int = file.get_int(f"tokenizer.ggml.{key}")
    if token in (-1, 0xFFFFFFFF):
        return None
    if not 0 <= token < n_vocab:
        raise _damaged(file, key, token, f"the vocabulary has 0 to {n_vocab - 1}")
    return token


def _flag(file: GGUFFile, key: str, default: bool) -> bool:
    value = file.metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise _damaged(file, key, value, "true or false")
    return value
