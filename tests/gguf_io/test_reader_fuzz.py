"""Mutated files: each opens soundly or is refused with a GGUFError; nothing else happens."""

import math
import os
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.gguf_io.errors import GGUFError
from hotcold.gguf_io.fields import StringArray

T, V = GGMLQuantizationType, GGUFValueType
Build = Any  # the class behind the fixture gguf_bytes

BUNDLED = Path(__file__).parents[2] / "models" / "tiny-relu-llama" / "tiny-relu-llama.q8_0.gguf"
EXTREMES = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def mutated(good: bytes, rng: random.Random) -> bytes:
    """One to three changes, often near either end: counts stand at the start, the tensor table at the end."""
    raw = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        first, last = rng.choice([(0, 64), (0, len(raw)), (len(raw) - 2048, len(raw))])
        at = rng.randrange(max(first, 0), max(min(last, len(raw)), 1))
        change = rng.choice(["flip", "cut", "drop", "insert", "repeat", "set8", "set4"])
        n_bytes = rng.choice([1, 4, 8, rng.randint(1, 100)])
        if change == "flip":
            raw[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in raw[at : at + 1])
        elif change == "cut":
            del raw[at:]
        elif change == "drop":
            del raw[at : at + n_bytes]
        elif change == "insert":
            raw[at:at] = rng.randbytes(n_bytes)
        elif change == "repeat":
            raw[at:at] = raw[at : at + n_bytes]
        else:
            size = int(change[-1])
            raw[at : at + size] = struct.pack("<Q", rng.choice(EXTREMES))[:size]
    return bytes(raw)


def check_sound(file: GGUFFile) -> None:
    """Whatever an open file says can be used."""
    for key, value in file.metadata.items():
        assert key.isprintable() and 0 < len(key.encode()) <= 65_535
        if isinstance(value, StringArray):
            assert len(list(value)) == len(value)
        if isinstance(value, np.ndarray):
            value.sum()
    end = 0
    for info in sorted(file.tensors.values(), key=lambda info: (info.offset, info.n_bytes)):
        block, size = GGML_QUANT_SIZES[info.type]
        assert info.name.isprintable() and 0 < len(info.name.encode()) < 64
        assert info.n_bytes == math.prod(info.ne) // block * size
        assert info.offset % file.alignment == 0
        assert end <= info.offset and info.offset + info.n_bytes <= file.size
        assert file.data(info.name).shape == (math.prod(info.ne[1:]), info.ne[0] // block * size)
        end = info.offset + info.n_bytes
    assert file.parts[0].all_data().size <= file.size


def outcome(path: Path) -> str:
    """`opened`, or the name of the refusal."""
    try:
        file = open_gguf(path)
    except GGUFError as error:
        assert type(error) is not GGUFError and str(error).isprintable() and len(str(error)) < 1000
        assert error.value is not None and error.bound and error.next_step, error
        return type(error).__name__
    with file:
        check_sound(file)
    return "opened"


def small(build: Build) -> Any:
    """A file with a value of each type and some tensors, data included."""
    sizes = {"8": 1, "L": 1, "6": 2, "2": 4, "4": 8}
    numbers = [kind for kind in V if kind not in (V.STRING, V.ARRAY)]
    pairs = [build.pair(kind.name.encode(), kind, bytes(sizes[kind.name[-1]])) for kind in numbers]
    pairs.append(build.pair(b"general.alignment", V.UINT32, struct.pack("<I", 32)))
    pairs.append(build.array(b"numbers", V.UINT16, 3, bytes(6)))
    pairs.append(build.array(b"flags", V.BOOL, 2, b"\0\1"))
    pairs.append(build.array(b"texts", V.STRING, 2, build.text(b"a") + build.text("▁b".encode())))
    pairs.append(build.array(b"nested", V.ARRAY, 1, struct.pack("<IQB", V.UINT8, 1, 7)))
    tensors = [
        build.tensor(b"f32", (4, 2)),
        build.tensor(b"q8", (32, 2), T.Q8_0, 32),
        build.tensor(b"empty", (0,), T.I32, 128),
        build.tensor(b"bf16", (2, 2, 2, 2), T.BF16, 128),
    ]
    return build(pairs=tuple(pairs), tensors=tuple(tensors), data=bytes(160))


@pytest.mark.parametrize("seed", range(6))
def test_mutated_small_files(seed: int, gguf_bytes: Build, tmp_path: Path) -> None:
    good, rng, outcomes = small(gguf_bytes).whole(), random.Random(seed), Counter[str]()
    path = tmp_path / "x.gguf"
    path.write_bytes(good)
    assert outcome(path) == "opened"
    for _ in range(300):
        path.write_bytes(mutated(good, rng))
        outcomes[outcome(path)] += 1
    assert outcomes["opened"] > 5 and len(outcomes) >= 7, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_mutations_of_the_bundled_model(seed: int, tmp_path: Path) -> None:
    """The tensors' data, which the reader never looks at, is a hole in the file."""
    with open_gguf(BUNDLED) as file:
        n_header = min(info.offset for info in file.tensors.values())
        n_data = file.size - n_header
    with BUNDLED.open("rb") as stream:
        good = stream.read(n_header)
    rng, outcomes, path = random.Random(seed), Counter[str](), tmp_path / "x.gguf"
    for _ in range(1000):
        header = mutated(good, rng)
        path.write_bytes(header)
        if rng.random() < 0.9:
            os.truncate(path, len(header) + n_data + rng.choice([0, 0, -1, 1, 4096]))
        outcomes[outcome(path)] += 1
    assert outcomes["opened"] > 20 and len(outcomes) >= 7, outcomes


def random_tensors(rng: random.Random, alignment: int) -> tuple[list[tuple[Any, ...]], int]:
    """Names, shapes, types and offsets that fill the data section; its size."""
    tensors, end = [], 0
    for i in range(rng.randrange(6)):
        kind = rng.choice([T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q6_K, T.I8])
        block, size = GGML_QUANT_SIZES[kind]
        ne = (rng.randrange(4) * block, *(rng.randrange(5) for _ in range(rng.randrange(4))))
        tensors.append((f"tensor {i}".encode(), ne, kind, end))
        end += math.prod(ne) // block * size
        end += -end % alignment
    return tensors, end


@pytest.mark.parametrize("seed", range(200))
def test_random_sound_files_open(seed: int, gguf_bytes: Build, tmp_path: Path) -> None:
    rng = random.Random(seed)
    alignment = 1 << rng.randrange(10)
    tensors, n_data = random_tensors(rng, alignment)
    numbers = [rng.randrange(2**64) for _ in range(rng.randrange(50))]
    texts = [rng.randbytes(rng.randrange(9)) for _ in range(rng.randrange(50))]
    pairs = [
        gguf_bytes.pair(b"general.alignment", V.UINT32, struct.pack("<I", alignment)),
        gguf_bytes.array(b"numbers", V.UINT64, len(numbers), struct.pack(f"<{len(numbers)}Q", *numbers)),
        gguf_bytes.array(b"texts", V.STRING, len(texts), b"".join(map(gguf_bytes.text, texts))),
    ]
    rng.shuffle(pairs)
    data = rng.randbytes(n_data)
    file_bytes = gguf_bytes(
        pairs=tuple(pairs),
        tensors=tuple(gguf_bytes.tensor(*tensor) for tensor in tensors),
        alignment=alignment,
        data=data,
        magic=rng.choice([b"GGUF", b"PWRI"]),
        version=rng.choice([2, 3]),
    )
    header = file_bytes.header()
    path = tmp_path / "x.gguf"
    path.write_bytes(header + bytes(-len(header) % alignment) + data)
    with open_gguf(path) as file:
        check_sound(file)
        assert (file.alignment, file.warnings) == (alignment, ())
        assert file.get_array("numbers").tolist() == numbers
        assert list(file.get_array("texts")) == texts
        assert [(i.name.encode(), i.ne, i.type) for i in file.tensors.values()] == [t[:3] for t in tensors]
        for name, _, _, offset in tensors:
            view = file.data(name.decode())
            assert view.tobytes() == data[offset : offset + view.nbytes]
