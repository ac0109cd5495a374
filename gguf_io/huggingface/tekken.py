"""Mistral's tekken.json: byte pieces by rank, and control pieces in front of them.

Format: mistral-common's `Tekkenizer`. The first `default_num_special_tokens` ids are special, those
without a name are `<SPECIAL_{id}>`; a piece's id is its rank behind them, and what is beyond
`default_vocab_size` is left out. There are no merges: of two neighbours those are joined first whose
piece has the lowest rank, so a piece is the product of the last join that this makes of its bytes.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from hotcold.errors import FileError
from hotcold.gguf_io.byte_characters import CHARACTER_OF
from hotcold.gguf_io.huggingface.bpe import BpeSource
from hotcold.gguf_io.huggingface.pretokenizer import recognise_patterns
from hotcold.gguf_io.huggingface.vocabulary import AGAIN
from hotcold.gguf_io.json_object import read_json_object

FILE = "tekken.json"
# of files that do not list them
SPECIALS = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
    "[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] "
    "[/SYSTEM_PROMPT] [TOOL_CONTENT]"
)


def read_tekken(path: Path) -> BpeSource:
    """What a tekken.json says.

    Raises:
        FileError: a piece that is missing, damaged or occurs twice, or sizes that do not fit.
    """
    tekken = read_json_object(path)
    config = tekken.get("config")
    config = config if isinstance(config, dict) else {}
    n_special = _size(path, config, "default_num_special_tokens")
    n_pieces = _size(path, config, "default_vocab_size") - n_special
    ranks = _ranks(path, tekken.get("vocab"), n_pieces)
    pattern = config.get("pattern")
    found = recognise_patterns((pattern,), ignore_merges=True) if isinstance(pattern, str) else None
    return BpeSource(
        origin=path,
        ids={_written(piece): n_special + rank for piece, rank in ranks.items()},
        merges=[(_written(left), _written(right)) for left, right in _merges(ranks)],
        pre=found.name if found else None,
        cuts=str(pattern),
        adds_bos=True,
        added=list(_specials(path, tekken, n_special)),
    )


def _size(path: Path, config: Mapping[str, Any], name: str) -> int:
    size = config.get(name)
    if type(size) is not int or not 0 <= size <= 1 << 24:
        raise FileError(f"{path}: {name}", repr(size)[:60], "a whole number", AGAIN)
    return size


def _ranks(path: Path, vocab: Any, n_pieces: int) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, entry in enumerate(vocab[:n_pieces] if isinstance(vocab, list) else ()):
        try:
            piece = base64.b64decode(entry["token_bytes"], validate=True)
        except (TypeError, KeyError, ValueError, binascii.Error):
            piece = b""
        if not piece or entry.get("rank") != number or ranks.setdefault(piece, number) != number:
            raise FileError(f"{path}: vocab[{number}]", repr(entry)[:60], "a rank and bytes each", AGAIN)
    if not ranks:
        raise FileError(f"{path}: vocab", "missing or empty", "a rank for each piece", AGAIN)
    return ranks


def _specials(path: Path, tekken: Mapping[str, Any], n_special: int) -> Iterator[dict[str, Any]]:
    """As added_tokens of a tokenizer.json."""
    names = {number: (text, True) for number, text in enumerate(SPECIALS.split())}
    if listed := tekken.get("special_tokens"):
        names = {}
        for entry in listed if isinstance(listed, list) else [listed]:
            number, text = (entry.get("rank"), entry.get("token_str")) if isinstance(entry, dict) else (-1, 0)
            if type(number) is not int or not isinstance(text, str):
                raise FileError(f"{path}: special_tokens", repr(entry)[:60], "a rank and a text each", AGAIN)
            names[number] = (text, entry.get("is_control", True) is True)
    for number in range(n_special):
        text, is_control = names.get(number, (f"<SPECIAL_{number}>", True))
        yield {"id": number, "content": text, "special": is_control}


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Of each piece of several bytes the two that it is made of, lowest rank first."""
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [piece[at : at + 1] for at in range(len(piece))]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            if (lowest := min(joined)) >= rank:
                break
            at = joined.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def _written(piece: bytes) -> str:
    return "".join(CHARACTER_OF[byte] for byte in piece)
