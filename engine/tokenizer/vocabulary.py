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
from hotcold.gguf_io.end_pieces import END_PIECES, HARMONY_ENDS, OLD_END_PIECES
from hotcold.gguf_io.fields import StringArray
from hotcold.gguf_io.names import END_IDS
from hotcold.gguf_io.oddities import MAX_SURPLUS, NO_ROW, NO_TYPE, Oddities

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPECIAL = (CONTROL, USER_DEFINED)
BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")
MAX_TOKENS = 1 << 24


@dataclass(frozen=True)
class Vocabulary:
    """What every kind of tokenizer has.

    Attributes:
        tokens: bytes of each piece.
        types: GGUF's token types 1 to 6.
        bos, eos, unknown: ids, None where the file has none.
        end_ids: ids after which generation ends, besides EOS.
        add_bos: whether BOS is put in front of a text. EOS is never put behind one: each is to go on.
        drops_spaces: whether white space behind a special piece is dropped.
    """

    tokens: Sequence[bytes]
    types: Sequence[int]
    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    end_ids: frozenset[int] = frozenset()
    add_bos: bool = True
    drops_spaces: bool = False


def read_vocabulary(
    file: GGUFFile, oddities: Oddities, *, add_bos: bool, n_rows: int | None = None
) -> Vocabulary:
    """The vocabulary of a file.

    Args:
        oddities: counts what is mended.
        add_bos: what holds if the file does not say.
        n_rows: ids that the model has rows for; what is beyond them is left out.

    Raises:
        FileError: metadata that are missing or damaged.
    """
    tokens = _tokens(file)
    types = _token_types(file, tokens, oddities)
    n_vocab = _n_with_rows(file, len(tokens), n_rows)
    ids = {
        name: _special_id(file, f"{name}_token_id", len(tokens), n_vocab)
        for name in ("bos", "eos", "unknown", "eot", "eom")
    }
    oddities.count(NO_ROW, len(tokens) - n_vocab)
    tokens, types = tokens[:n_vocab], types[:n_vocab]
    # llama.cpp takes these for control pieces whatever their type: Gemma's files had a normal <end_of_turn>
    known = END_PIECES - {b"<|end|>"} if set(tokens) >= HARMONY_ENDS else END_PIECES
    ends = {token for token, text in enumerate(tokens) if text in known}
    ends |= {t for t, text in enumerate(tokens) if text in OLD_END_PIECES and types[t] in SPECIAL}
    for token in ends:
        types[token] = CONTROL
    ends |= {end for name in ("eot", "eom") if (end := ids[name]) is not None} | _further_ends(file, n_vocab)
    return Vocabulary(
        tokens,
        types,
        ids["bos"],
        ids["eos"],
        ids["unknown"],
        frozenset(ends),
        flag(file, "add_bos_token", add_bos),
        drops_spaces=_is_phi3(file),
    )


def _is_phi3(file: GGUFFile) -> bool:
    """By its name, as llama.cpp knows Phi-3: no key says that its special pieces take white space along."""
    name = file.metadata.get("general.name")
    return isinstance(name, str) and any(known in name.lower() for known in ("phi-3", "phi3"))


def byte_ids(tokens: Sequence[bytes], types: Sequence[int]) -> list[int]:
    """Ids of the byte pieces 0 to 255; empty unless all are there."""
    found: dict[int, int] = {}
    for token, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        match = BYTE_PIECE.fullmatch(text) if kind == BYTE else None
        if match:
            found[int(match[1], 16)] = token
    return [found[byte] for byte in range(256)] if len(found) == 256 else []


def ids_of_texts(tokens: Sequence[bytes], types: Sequence[int]) -> dict[bytes, int]:
    """The piece that a text becomes: of equal ones the first that is in use."""
    found: dict[bytes, int] = {}
    for token, text in enumerate(tokens):
        first = found.setdefault(text, token)
        if types[first] == UNUSED and types[token] != UNUSED:
            found[text] = token
    return found


def damaged(file: GGUFFile, key: str, value: object, bound: str) -> FileError:
    """The refusal of one key's value."""
    return FileError(f"{file.path.name}: tokenizer.ggml.{key}", value, bound, "convert the model again")


def shown(text: bytes) -> str:
    """A piece's text for a message, its beginning if it is long."""
    return text[:32].decode(errors="backslashreplace")


def scores(file: GGUFFile, n_vocab: int) -> list[float]:
    """Scores of the first ids: in a SentencePiece vocabulary a merge with a higher score comes first."""
    found = np.asarray(file.get_array("tokenizer.ggml.scores"))
    n_tokens = len(file.get_array("tokenizer.ggml.tokens"))
    if found.dtype.kind not in "fiu" or found.shape != (n_tokens,):
        raise damaged(file, "scores", f"{found.size} of {found.dtype}", f"{n_tokens} numbers")
    if np.isnan(found).any():
        raise damaged(file, "scores", "nan", "numbers")
    return [float(score) for score in found[:n_vocab]]


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


def _n_with_rows(file: GGUFFile, n_tokens: int, n_rows: int | None) -> int:
    """Pieces that the model has rows for; FileError if they are another model's."""
    if n_rows is None or n_tokens <= n_rows:
        return n_tokens
    if n_tokens > n_rows + MAX_SURPLUS:
        bound = f"token_embd has {n_rows} rows"
        raise FileError(f"{file.path.name}: vocabulary", f"{n_tokens} pieces", bound, "the file is damaged")
    return n_rows


def _token_types(file: GGUFFile, tokens: list[bytes], oddities: Oddities) -> list[int]:
    """Types by id; without one a piece is normal, or a byte if it is named like one."""
    if "tokenizer.ggml.token_type" not in file.metadata:
        return [_untyped(text) for text in tokens]
    types = np.asarray(file.get_array("tokenizer.ggml.token_type"))
    if types.dtype.kind not in "iu" or types.shape != (len(tokens),):
        raise damaged(file, "token_type", f"{types.size} of {types.dtype}", f"{len(tokens)} whole numbers")
    for kind in np.unique(types):
        if not 0 <= kind <= BYTE:
            raise damaged(file, "token_type", int(kind), f"{NORMAL} to {BYTE}")
    oddities.count(NO_TYPE, int(np.count_nonzero(types == 0)))
    for token in np.flatnonzero(types == BYTE):
        if not BYTE_PIECE.fullmatch(tokens[token]):
            bound = "byte pieces are <0x00> to <0xFF>"
            raise damaged(file, f"tokens[{token}]", shown(tokens[token]), bound)
    return [int(kind) or _untyped(text) for kind, text in zip(types, tokens, strict=True)]


def _untyped(text: bytes) -> int:
    return BYTE if BYTE_PIECE.fullmatch(text) else NORMAL


def _special_id(file: GGUFFile, key: str, n_tokens: int, n_vocab: int) -> int | None:
    """Id of a special token, None without a row. Some files write -1, as a number without a sign, for none."""
    if f"tokenizer.ggml.{key}" not in file.metadata:
        return None
    token: int = file.get_int(f"tokenizer.ggml.{key}")
    if token in (-1, 0xFFFFFFFF):
        return None
    if not 0 <= token < n_tokens:
        raise damaged(file, key, token, f"the vocabulary has 0 to {n_tokens - 1}")
    return token if token < n_vocab else None


def _further_ends(file: GGUFFile, n_vocab: int) -> set[int]:
    """Ids that end a text for which llama.cpp has no key."""
    if END_IDS not in file.metadata:
        return set()
    ids = np.asarray(file.get_array(END_IDS))
    if ids.dtype.kind not in "iu":
        raise FileError(
            f"{file.path.name}: {END_IDS}", f"{ids.dtype}", "token ids", "convert the model again"
        )
    return {int(token) for token in ids if 0 <= token < n_vocab}
