"""What tokenizers have in common: special pieces in the text, BOS in front, bytes that are no UTF-8."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from hotcold.engine.tokenizer.vocabulary import (
    BYTE,
    BYTE_PIECE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
)

UTF8 = re.compile(  # the well-formed sequences of the Unicode standard, table 3-7
    rb"(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2})++"
)
KEEPING = (b"<unk>", b"<s>", b"<|endoftext|>")
LENGTH_BY_LEAD = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4)  # by the upper four bits


class PieceTokenizer(ABC):
    """A vocabulary and its encoder.

    Splitting at special pieces follows llama.cpp: user-defined pieces are always found in the text,
    control pieces and the unknown piece only with `parse_special`, longest piece first.

    Attributes:
        tokens: bytes of each piece.
        types: GGUF's token types 1 to 6.
        warnings: what a user should know of the vocabulary, one line each.
    """

    def __init__(self, vocabulary: Vocabulary, warnings: tuple[str, ...] = ()) -> None:
        self.tokens, self.types = list(vocabulary.tokens), list(vocabulary.types)
        self.n_vocab, self.bos, self.eos = len(self.tokens), vocabulary.bos, vocabulary.eos
        self.end_ids = vocabulary.end_ids | (frozenset() if self.eos is None else {self.eos})
        self.add_bos = vocabulary.add_bos
        self.warnings = warnings
        self._specials = _specials(self.tokens, self.types)
        self._dropping = _dropping(self._specials) if vocabulary.drops_spaces else frozenset()
        self._longest = max(1, *map(len, self.tokens))

    def encode(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False, guard: str = ""
    ) -> list[int]:
        """Ids of `text`.

        Args:
            text: bytes that are no UTF-8 become the ids of single bytes.
            add_special: put BOS in front if the model asks for it; EOS never is put behind a text to go on.
            parse_special: find control pieces such as `</s>` in the text.
            guard: where it stands no such piece is found across it; it is not part of the text.

        Raises:
            SettingError: a byte that the vocabulary has no piece for.
        """
        data = _as_bytes(text) if isinstance(text, str) else bytes(text)
        ids = [self.bos] if add_special and self.add_bos and self.bos is not None else []
        after_special = True
        for part in self._split(data, parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_plain(part.replace(guard.encode(), b"") if guard else part, after_special)
            after_special = isinstance(part, int)
        return ids

    def brings_bos(self, text: str | bytes) -> bool:
        """Whether BOS would go in front of a text with special pieces, but the text begins with it."""
        data = _as_bytes(text) if isinstance(text, str) else bytes(text)
        longest = max((len(special) for special, _ in self._specials), default=0)
        return self.add_bos and self._split(data[:longest], parse_special=True)[:1] == [self.bos]

    def special_texts(self, *, user_defined: bool = False) -> list[str]:
        """Texts of the pieces that are found in a text before anything else, longest first.

        Args:
            user_defined: of the user-defined ones too, not only of those that `parse_special` finds.
        """
        found = [text for text, token in self._specials if user_defined or self.types[token] != USER_DEFINED]
        return [text.decode(errors="replace") for text in found]

    def fewest_tokens(self, n_bytes: int) -> int:
        """A lower bound of the tokens of any text of `n_bytes`: no piece stands for more than it has."""
        return -(-n_bytes // self._longest)

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
        return self._normal_piece(text) if kind == NORMAL else b""

    def decode(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """Bytes of all tokens."""
        return b"".join(self.piece(token, special=special) for token in ids)

    @abstractmethod
    def _normal_piece(self, text: bytes) -> bytes:
        """Bytes that a normal piece stands for."""

    @abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """Ids of text without special pieces."""

    @abstractmethod
    def _encode_bytes(self, data: bytes) -> list[int]:
        """Ids of bytes that are no UTF-8."""

    def _encode_plain(self, data: bytes, after_special: bool) -> list[int]:
        """Ids of a run without special pieces, which starts the text or follows one, or not."""
        ids: list[int] = []
        for valid, text in _utf8_runs(data):
            ids += self._encode_text(text.decode()) if valid else self._encode_bytes(text)
        return ids

    def _split(self, data: bytes, parse_special: bool) -> list[bytes | int]:
        """Runs of plain text, none empty, and the ids of special pieces between them."""
        parts: list[bytes | int] = [data] if data else []
        for text, token in self._specials:
            if (parse_special or self.types[token] == USER_DEFINED) and text in data:
                parts = [piece for part in parts for piece in _split_at(part, text, token)]
        return _without_spaces(parts, self._dropping) if self._dropping else parts


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


def _without_spaces(parts: list[bytes | int], dropping: frozenset[int]) -> list[bytes | int]:
    """The same without the white space behind these tokens."""
    kept: list[bytes | int] = []
    for part in parts:
        if isinstance(part, bytes) and kept and kept[-1] in dropping:
            part = part.lstrip()
        if part != b"":
            kept.append(part)
    return kept


def _dropping(specials: list[tuple[bytes, int]]) -> frozenset[int]:
    """The tokens of Phi-3 behind which white space is dropped: all special ones but three, as in llama.cpp."""
    return frozenset(token for text, token in specials if text not in KEEPING)


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
