"""Scales and numbers that are NaN or infinite, in every type, are found and named."""

from pathlib import Path

import numpy as np
import pytest
from commands import run
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

import hotcold
from hotcold.engine.model.model import MATRIX_TYPES
from hotcold.errors import FileError
from hotcold.gguf_io import blocks, open_gguf
from hotcold.gguf_io.check_tensors import CHECKED, check_tensors

T = GGMLQuantizationType
MODEL = Path(__file__).parents[1] / "data" / "llamacpp" / "llama.q4_0.gguf"
N_ROWS, N_BLOCKS = 7, 3
NAN, INFINITE = 0x7E01, 0xFC00  # half floats
WITHOUT_HALVES = {T.F32, T.F16, T.BF16, T.MXFP4, T.IQ1_M}
FLOATS = {
    T.F32: ("<f4", 0x7FC00001, 0xFF800000),
    T.F16: ("<f2", NAN, INFINITE),
    T.BF16: ("<u2", 0x7FC1, 0xFF80),
}


def write(path: Path, rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> Path:
    """A file with a sound tensor and one of these rows."""
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("sound", np.zeros((2, 32), np.float32))
    writer.add_tensor("matrix", rows, raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


def sound(kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Blocks of any bytes, with the largest finite scales: uint8 [N_ROWS, N_BLOCKS, bytes a block]."""
    data = np.random.default_rng(5).integers(0, 256, (N_ROWS, N_BLOCKS, blocks.type_size(kind)), np.uint8)
    if kind in FLOATS:
        data[..., -1] &= 0x3F
    elif kind is T.MXFP4:
        data[..., 0] = 0xFE
    elif kind is T.IQ1_M:
        set_iq1_m(data, 0xFBFF)
    else:
        data[..., blocks.SCALE_BYTES[kind]] = np.frombuffer(b"\xff\xfb" * 2, np.uint8)[
            : data[..., blocks.SCALE_BYTES[kind]].shape[-1]
        ]
    return data


def set_iq1_m(block: NDArray[np.uint8], half: int) -> None:
    """The scale of blocks: its lowest four bits on top of the first of four numbers, and so on."""
    for i in range(4):
        top = block[..., 49 + 2 * i]
        top[...] = (top & 0x0F) | ((half >> 4 * i & 0xF) << 4)


def damages(kind: GGMLQuantizationType) -> list[tuple[slice, bytes]]:
    """Where in a block what bytes make it NaN, and infinite if it can be."""
    if kind is T.MXFP4:
        return [(slice(0, 1), b"\xff")]
    if kind in FLOATS:
        size = blocks.type_size(kind)
        return [(slice(0, size), bits.to_bytes(size, "little")) for bits in FLOATS[kind][1:]]
    scale = blocks.SCALE_BYTES[kind]
    places = [slice(i, i + 2) for i in range(scale.start, scale.stop, 2)]
    return [(place, bits.to_bytes(2, "little")) for place in places for bits in (NAN, INFINITE)]


def refusal(path: Path, slab_bytes: int = 1 << 20) -> str:
    with open_gguf(path) as file, pytest.raises(FileError) as caught:
        check_tensors(file, 2, slab_bytes=slab_bytes)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_all_types_that_run_are_checked() -> None:
    assert MATRIX_TYPES <= CHECKED


@pytest.mark.parametrize("kind", sorted(CHECKED), ids=lambda kind: kind.name)
def test_damage_is_named(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    data = sound(kind)
    with open_gguf(write(tmp_path / "sound.gguf", data.reshape(N_ROWS, -1), kind)) as file:
        check_tensors(file, 2)
        check_tensors(file, 2, slab_bytes=1)
    what = "number" if kind in FLOATS else "block"
    many = [(place, given) for place, given in damages(kind)] if kind is not T.IQ1_M else [NAN, INFINITE]
    for row, block, slab_bytes in ((4, 1, 1 << 20), (N_ROWS - 1, N_BLOCKS - 1, 300)):
        for damage in many:
            bad = data.copy()
            if isinstance(damage, int):
                set_iq1_m(bad[row, block], damage)
            else:
                bad[row, block, damage[0]] = np.frombuffer(damage[1], np.uint8)
            path = write(tmp_path / "bad.gguf", bad.reshape(N_ROWS, -1), kind)
            assert f"bad.gguf: tensor matrix: row {row}, {what} {block} (NaN or infinite" in refusal(
                path, slab_bytes
            )


def damaged(path: Path) -> Path:
    """The model with an infinite scale in one block."""
    with open_gguf(MODEL) as file:
        info = file.tensors["blk.1.ffn_up.weight"]
    data = bytearray(MODEL.read_bytes())
    at = info.offset + 5 * info.row_bytes + 2 * 18
    data[at : at + 2] = INFINITE.to_bytes(2, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("command", ["generate", "chat", "perplexity", "bench"])
def test_nothing_runs_on_a_damaged_file(tmp_path: Path, command: str) -> None:
    path = damaged(tmp_path / "bad.gguf")
    given = {"generate": ("-p", "a"), "perplexity": ("-f", __file__)}.get(command, ())
    result = run(command, "-m", str(path), "--device", "cpu", "--check-tensors", *given, stdin=b"a\n")
    assert (result.returncode, result.stdout) == (3, "")
    assert (
        "bad.gguf: tensor blk.1.ffn_up.weight: row 5, block 2 (NaN or infinite scale in Q4_0)"
        in result.stderr
    )


def test_the_library_looks_when_it_is_asked_to(tmp_path: Path) -> None:
    path = damaged(tmp_path / "bad.gguf")
    hotcold.load(path, device="cpu").close()
    hotcold.load(MODEL, device="cpu", check_tensors=True).close()
    for no_mmap in (False, True):
        with pytest.raises(FileError, match="row 5, block 2"):
            hotcold.load(path, device="cpu", check_tensors=True, no_mmap=no_mmap)
