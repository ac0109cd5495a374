"""Texts from files, folders and lines of JSON, and their ids in runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hotcold import load
from hotcold.engine.profile.corpus import Text, chunks, digest, read_texts
from hotcold.errors import FileError

Read = Callable[[Path], bytes]


def read(path: Path) -> bytes:
    return path.read_bytes()


def test_a_folder_is_all_that_is_below_it(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("two")
    (tmp_path / "one.md").write_text("one")
    (tmp_path / "three.jsonl").write_text('{"body": "three"}\n\n{"body": "four", "n": 1}\n')
    assert [text.data for text in read_texts(tmp_path, "body", read)] == [b"two", b"one", b"three", b"four"]
    assert read_texts(tmp_path / "three.jsonl", "body", read)[1].name.endswith("three.jsonl:3")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"abc\0def", "zero bytes"),
        ("a.jsonl", b'{"other": "x"}', "a JSON object with 'text'"),
        ("a.jsonl", b"[1]", "a JSON object with 'text'"),
        ("a.jsonl", b"no json", "a JSON object with 'text'"),
        ("a.jsonl", b"[" * 100_000, "a JSON object with 'text'"),
        ("a.jsonl", b'{"text": 3}', "text is int"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=problem):
        read_texts(tmp_path / name, "text", read)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no file is in it"):
        read_texts(tmp_path, "text", read)


def test_ids_come_in_runs_that_begin_anew() -> None:
    texts = [Text("a", b"Once upon a time there was a little dog. " * 5), Text("b", b"The end")]
    with load(n_ctx=16) as engine:
        found, bos = chunks(texts, engine.tokenizer, 16), engine.tokenizer.bos
        whole = [engine.tokenizer.encode(text.data)[1:] for text in texts]
    assert all(chunk[0] == bos and 3 <= chunk.size <= 16 for chunk in found)
    joined = np.concatenate([chunk[1:] for chunk in found[:-1]]).tolist()
    assert joined == whole[0][: len(joined)] and len(whole[0]) - len(joined) <= 1, "one alone is dropped"
    assert found[-1][1:].tolist() == whole[1]
    assert digest(found) != digest(found[:-1]) and digest(found) == digest([chunk.copy() for chunk in found])


def test_too_little_text_is_refused() -> None:
    with load(n_ctx=16) as engine, pytest.raises(FileError, match="texts: 1 bytes .too short"):
        chunks([Text("a", b"a")], engine.tokenizer, 16)
