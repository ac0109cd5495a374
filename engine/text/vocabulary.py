"""The vocabulary of a file's metadata: pieces, their types, special ids, each checked.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, `tokenizer.ggml.*`. Both kinds of
tokenizer have them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.fields import StringArray

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")
MAX_TOKENS = 1 << 24
# Pieces that end a text or a turn wherever they are found. Many files name only one of theirs as EOS
# (Llama 3's chat models have `<|end_of_text|>` there and say `<|eot_id|>`); llama.cpp knows them by
# their text too.
END_PIECES = frozenset(
    b"</s> <|endoftext|> <|end_of_text|> <|eot_id|> <|eom_id|> <|im_end|> <|end|> <end_of_turn> <EOT>".split()
)


@dataclass(frozen=True)
class Vocabulary:
    """What every kind of tokenizer has.

    Attributes:
        tokens: bytes of each piece. types: GGUF's token types 1 to 6.
        bos, eos, unknown: ids, None where the file has none.
        end_ids: ids after which generation ends, besides EOS.
        add_bos, add_eos: whether a text is put between BOS and EOS.
    """

    tokens: Sequence[bytes]
    types: Sequence[int]
    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    end_ids: frozenset[int] = frozenset()
    add_bos: bool = True
    add_eos: bool = False


def read_vocabulary(file: GGUFFile, *, add_bos: bool) -> Vocabulary:
    """The vocabulary of a file.

    Args:
        add_bos: what holds if the file does not say.

    Raises:
        FileError: metadata that are missing or damaged.
    """
    tokens = _tokens(file)
    types = _token_types(file, tokens)
    ids = {name: _special_id(file, name, len(tokens)) for name in ("bos", "eos", "unknown", "eot", "eom")}
    ends = {token for token, text in enumerate(tokens) if text in END_PIECES}
    for token in ends:
        types[token] = CONTROL
    ends |= {end for name in ("eot", "eom") if (end := ids[name]) is not None}
    return Vocabulary(
        tokens,
        types,
        ids["bos"],
        ids["eos"],
        ids["unknown"],
        frozenset(ends),
        flag(file, "add_bos_token", add_bos),
        flag(file, "add_eos_token", False),
    )


def byte_ids(tokens: Sequence[bytes], types: Sequence[int]) -> list[int]:
    """Ids of the byte pieces 0 to 255; empty unless all are there."""
    found: dict[int, int] = {}
    for token, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        match = BYTE_PIECE.fullmatch(text) if kind == BYTE else None
        if match:
            found[int(match[1], 16)] = token
    return [found[byte] for byte in range(256)] if len(found) == 256 else []


def damaged(file: GGUFFile, key: str, value: object, bound: str) -> FileError:
    """The refusal of one key's value."""
    return FileError(f"{file.path.name}: tokenizer.ggml.{key}", value, bound, "convert the model again")


def shown(text: bytes) -> str:
    """A piece's text for a message, its beginning if it is long."""
    return text[:32].decode(errors="backslashreplace")


def scores(file: GGUFFile, n_vocab: int) -> list[float]:
    """Scores by id: in a SentencePiece vocabulary a merge with a higher score comes first."""
    found = np.asarray(file.get_array("tokenizer.ggml.scores"))
    if found.dtype.kind not in "fiu" or found.shape != (n_vocab,):
        raise damaged(file, "scores", f"{found.size} of {found.dtype}", f"{n_vocab} numbers")
    if np.isnan(found).any():
        raise damaged(file, "scores", "nan", "numbers")
    return [float(score) for score in found]


def strings(file: GGUFFile, key: str) -> list[bytes]:
    """An array of text."""
    found = file.get_array(f"tokenizer.ggml.{key}")
    if not isinstance(found, StringArray):
        raise damaged(file, key, "an array of something else", "an array of text")
    return list(found)


def flag(file: GGUFFile, key: str, default: bool) -> bool:
    """A switch."""
    value = file.metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise damaged(file, key, value, "true or false")
    return value


def _tokens(file: GGUFFile) -> list[bytes]:
    n = len(file.get_array("tokenizer.ggml.tokens"))
    if not 1 <= n <= MAX_TOKENS:
        raise damaged(file, "tokens", f"{n} pieces", f"1 to {MAX_TOKENS}")
    return strings(file, "tokens")


def _token_types(file: GGUFFile, tokens: list[bytes]) -> list[int]:
    """Types by id; without the array every piece is normal but those named like bytes."""
    if "tokenizer.ggml.token_type" not in file.metadata:
        return [BYTE if BYTE_PIECE.fullmatch(text) else NORMAL for text in tokens]
    types = np.asarray(file.get_array("tokenizer.ggml.token_type"))
    if types.dtype.kind not in "iu" or types.shape != (len(tokens),):
        raise damaged(file, "token_type", f"{types.size} of {types.dtype}", f"{len(tokens)} whole numbers")
    for kind in np.unique(types):
        if not NORMAL <= kind <= BYTE:
            raise damaged(file, "token_type", int(kind), f"{NORMAL} to {BYTE}")
    for token in np.flatnonzero(types == BYTE):
        if not BYTE_PIECE.fullmatch(tokens[token]):
            bound = "byte pieces are <0x00> to <0xFF>"
            raise damaged(file, f"tokens[{token}]", shown(tokens[token]), bound)
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
        raise damaged(file, key, token, f"the vocabulary has 0 to {n_vocab - 1}")
    return token
