"""Texts to count on, and how they are cut into runs of ids."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.profile.passing import FEWEST
from hotcold.engine.tokenizer.tokenizer import Tokenizer
from hotcold.errors import FileError, SettingError

JSON_LINES = ".jsonl"
SHORTEST = 2  # ids of a chunk: one alone would go through the graph of a decoded token


@dataclass(frozen=True)
class Text:
    """A text and where it comes from."""

    name: str
    data: bytes


def read_texts(path: Path, field: str, read: Callable[[Path], bytes]) -> list[Text]:
    """The texts of a file, a folder with all that is below it, or a pipe, by name.

    Args:
        field: of each object in a .jsonl file, that is the text.
        read: gives the bytes of a file.

    Raises:
        FileError: nothing is there, or what is there is no text.
    """
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        if not files:
            raise FileError("text folder", path, "no file is in it", "name a folder with texts")
        return [text for file in files for text in read_texts(file, field, read)]
    data = read(path)
    if path.suffix == JSON_LINES:
        return list(_json_lines(path, data, field))
    return [Text(str(path), _checked(str(path), data))]


def _json_lines(path: Path, data: bytes, field: str) -> Iterator[Text]:
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        name = f"{path}:{number}"
        try:
            text = json.loads(line)[field]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileError(
                name, line[:40], f"a JSON object with {field!r}", "name its field with --field"
            ) from error
        if not isinstance(text, str):
            raise FileError(
                name, f"{field} is {type(text).__name__}", "a text", "name its field with --field"
            )
        yield Text(name, text.encode("utf-8", "surrogatepass"))


def _checked(name: str, data: bytes) -> bytes:
    if not data.strip():
        raise FileError("text", name, "is empty", "leave it out")
    if b"\0" in data:
        raise FileError("text", name, "has zero bytes, so it is no text", "leave it out")
    return data


def chunks(texts: Sequence[Text], tokenizer: Tokenizer, n_ctx: int) -> list[NDArray[np.int32]]:
    """The ids of every text in runs of n_ctx, the last of a text shorter.

    Each begins with BOS where the model wants one. What is left of one id is dropped.

    Raises:
        SettingError: n_ctx is too short for batches that can be looked at.
        FileError: there are fewer than `SHORTEST` ids in all.
    """
    if n_ctx < FEWEST:
        raise SettingError("-c", n_ctx, f"at least {FEWEST} ids that run together", "such as -c 512")
    wants_bos = tokenizer.add_bos and tokenizer.bos is not None
    head = [tokenizer.bos] if wants_bos else []
    step, found = n_ctx - len(head), []
    for text in texts:
        ids = tokenizer.encode(text.data)[len(head) :]
        found += [np.array(head + ids[at : at + step], np.int32) for at in range(0, len(ids), step)]
    long_enough = [chunk for chunk in found if chunk.size >= SHORTEST + len(head)]
    if not long_enough:
        raise FileError(
            "texts", f"{sum(len(text.data) for text in texts)} bytes", "too short", "give more text"
        )
    return long_enough


def digest(found: Sequence[NDArray[np.int32]]) -> str:
    """SHA-256 of the ids, cut as they are."""
    hashed = hashlib.sha256()
    for chunk in found:
        hashed.update(f"{chunk.size} ".encode())
        hashed.update(chunk.tobytes())
    return hashed.hexdigest()
