"""Files of weights, and others, that are damaged or cut."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversion_refusals import MakeLlama, refusal

from hotcold.errors import HotcoldError
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.errors import TruncatedError


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}, "element type I32 (F32, F16 or BF16)"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "4 bytes (shape [2] of F32 takes 8)"),
        ({"dtype": "F32", "shape": [2**62, 4, 4], "data_offsets": [0, 8]}, "takes 295147905179352825856"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "none of them negative"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "-8 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "starts at byte 4"),
        ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "needs a shape"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "needs a shape"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "element type"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "its header describes"),
        ("F32", "needs a shape"),
    ],
)
def test_damaged_safetensors(llama: MakeLlama, out: Path, entry: Any, text: str) -> None:
    model = llama()
    header = json.dumps({"a": entry}).encode()
    (model.folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert text in str(refusal(model.folder, out))


def test_a_header_of_no_length_that_a_file_has(llama: MakeLlama, out: Path) -> None:
    model = llama()
    file = model.folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + file.read_bytes()[8:])
    assert "header of 9223372036854775808 bytes" in str(refusal(model.folder, out))


def test_a_cut_file(llama: MakeLlama, out: Path) -> None:
    model = llama()
    file = model.folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    error = refusal(model.folder, out)
    assert isinstance(error, TruncatedError) and "its header describes" in str(error)


def test_a_file_cut_while_it_is_converted(llama: MakeLlama, out: Path) -> None:
    model = llama()
    file = model.folder / "model.safetensors"

    def cut(*_: object) -> None:
        os.truncate(file, file.stat().st_size - 100)

    error = refusal(model.folder, out, progress=cut)
    assert isinstance(error, TruncatedError) and "were there when it was opened" in str(error)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.model", "model.safetensors", "tokenizer_config.json"]
)
def test_random_damage_gives_one_of_our_errors(llama: MakeLlama, out: Path, name: str) -> None:
    """A seeded mutator: flipped, cut, inserted and overwritten bytes; a conversion or a HotcoldError."""
    model = llama()
    file = model.folder / name
    (model.folder / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<s>"}, "add_bos_token": true}'
    )
    content = file.read_bytes()
    head = min(len(content), 2000)
    random = np.random.default_rng(3)
    out.parent.mkdir()
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        at = int(random.integers(head))
        change = int(random.integers(4))
        if change == 0:
            damaged[at] ^= 1 << int(random.integers(8))
        elif change == 1:
            del damaged[at : at + int(random.integers(1, 9))]
        elif change == 2:
            damaged[at:at] = random.bytes(3)
        else:
            damaged[at : at + 8] = struct.pack("<Q", (0, 2**31, 2**63, 2**64 - 1)[int(random.integers(4))])
        file.write_bytes(damaged)
        try:
            convert(model.folder, None, out, "q4_0", force=True)
        except HotcoldError:
            refused += 1
    assert refused > 50
