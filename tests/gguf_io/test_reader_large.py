"""Large files: what opening costs does not grow with what they hold."""

import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from hotcold.gguf_io import GGUFFile, open_gguf

T, V = GGMLQuantizationType, GGUFValueType
Build = Any  # the class behind the fixture gguf_bytes


def cost_of_opening(path: Path) -> tuple[GGUFFile, float, int]:
    """The file, CPU seconds, and bytes of memory at the most."""
    start = time.process_time()
    open_gguf(path).close()
    seconds = time.process_time() - start
    tracemalloc.start()
    try:
        return open_gguf(path), seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [V.UINT8, V.INT8, V.BOOL])
def test_a_hundred_million_small_elements(kind: GGUFValueType, gguf_bytes: Build, tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    head = gguf_bytes(pairs=(gguf_bytes.array(b"k", kind, 10**8),)).whole()
    path.write_bytes(head)
    os.truncate(path, len(head) + 10**8)
    file, seconds, peak = cost_of_opening(path)
    assert len(file.get_array("k")) == 10**8
    assert seconds < 1 and peak < 1e6


def test_a_large_tensor_is_not_read(gguf_bytes: Build, tmp_path: Path) -> None:
    """A terabyte opens as fast as a kilobyte."""
    path = tmp_path / "large.gguf"
    raw = gguf_bytes(tensors=(gguf_bytes.tensor(b"a", (2**20, 2**20), T.I8),), data=b"\0").whole()
    path.write_bytes(raw)
    try:
        os.truncate(path, len(raw) - 1 + 2**40)
    except OSError:
        pytest.skip("this file system has no sparse file of a terabyte")
    file, seconds, peak = cost_of_opening(path)
    assert file.data("a").shape == (2**20, 2**20)
    assert seconds < 0.1 and peak < 1e5


def test_strings_of_an_array_stay_in_the_file(gguf_bytes: Build, tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    texts = gguf_bytes.text(b"x" * 10_000) * 1000
    path.write_bytes(gguf_bytes(pairs=(gguf_bytes.array(b"k", V.STRING, 1000, texts),)).whole())
    file, _, peak = cost_of_opening(path)
    assert peak < 1e5
    assert {len(text) for text in file.get_array("k")} == {10_000}


def test_a_large_vocabulary_opens_fast(gguf_bytes: Build, tmp_path: Path) -> None:
    """128,000 pieces with scores and types, and 280,000 merges."""
    pieces = b"".join(gguf_bytes.text(b"piece%d" % i) for i in range(128_000))
    merges = b"".join(gguf_bytes.text(b"left%d right%d" % (i, i)) for i in range(280_000))
    pairs = (
        gguf_bytes.array(b"tokenizer.ggml.tokens", V.STRING, 128_000, pieces),
        gguf_bytes.array(b"tokenizer.ggml.scores", V.FLOAT32, 128_000, bytes(4 * 128_000)),
        gguf_bytes.array(b"tokenizer.ggml.token_type", V.INT32, 128_000, bytes(4 * 128_000)),
        gguf_bytes.array(b"tokenizer.ggml.merges", V.STRING, 280_000, merges),
    )
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_bytes(pairs=pairs).whole())
    start = time.process_time()
    file = open_gguf(path)
    assert time.process_time() - start < 0.5
    tokens, last = file.get_array("tokenizer.ggml.tokens"), file.get_array("tokenizer.ggml.merges")[-1]
    assert (len(tokens), tokens[127_999], last) == (128_000, b"piece127999", b"left279999 right279999")
