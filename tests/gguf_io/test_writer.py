"""A file appears whole or not at all, and the gguf package reads back what was written."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from numpy.typing import NDArray

from hotcold.errors import DoesNotFitError, FileError, HotcoldError, SettingError
from hotcold.gguf_io.writer import (
    Contents,
    MetadataValue,
    OutputTensor,
    array,
    boolean,
    float32,
    string,
    uint32,
    write_gguf,
)
from hotcold.whole_file import check_output

NUMBERS = np.arange(21, dtype=np.float32).reshape(3, 7)


def tensor(name: str, numbers: NDArray[np.float32], n_chunks: int = 1) -> OutputTensor:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        for rows in np.array_split(numbers, n_chunks):
            yield rows.view(np.uint8)

    return OutputTensor(name, GGMLQuantizationType.F32, numbers.shape[::-1], numbers.nbytes, chunks)


def failing(error: BaseException) -> OutputTensor:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        yield NUMBERS[:1].view(np.uint8)
        raise error

    return OutputTensor("bad.weight", GGMLQuantizationType.F32, (7, 3), NUMBERS.nbytes, chunks)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def test_round_trip(file: Path) -> None:
    metadata: dict[str, MetadataValue] = {
        "a.u32": uint32(7),
        "a.f32": float32(0.5),
        "a.bool": boolean(True),
        "a.text": string("né"),
        "a.counts": array([1, 2**63], GGUFValueType.UINT64),
        "a.tokens": array([b"a", b"\xe2\x96\x81b"], GGUFValueType.STRING),
    }
    tensors = [tensor("one.weight", NUMBERS, 3), tensor("two.weight", NUMBERS[0])]
    assert write_gguf(file, Contents("llama", metadata, tensors)) == file.stat().st_size
    reader = GGUFReader(file)
    found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert found == {
        "general.architecture": "llama",
        "a.u32": 7,
        "a.f32": 0.5,
        "a.bool": True,
        "a.text": "né",
        "a.counts": [1, 2**63],
        "a.tokens": ["a", "▁b"],
    }
    assert [(t.name, t.shape.tolist()) for t in reader.tensors] == [
        ("one.weight", [7, 3]),
        ("two.weight", [7]),
    ]
    assert np.array_equal(reader.tensors[0].data, NUMBERS)
    assert np.array_equal(reader.tensors[1].data, NUMBERS[0])
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)
    assert file.stat().st_size % 32 == 0


def test_the_magic_alone_differs(file: Path) -> None:
    write_gguf(file, Contents("llama", {}, [tensor("one.weight", NUMBERS)]))
    plain = file.read_bytes()
    write_gguf(file, Contents("llama", {}, [tensor("one.weight", NUMBERS)], "PWRI"), force=True)
    assert plain[:4] == b"GGUF"
    assert file.read_bytes() == b"PWRI" + plain[4:]


def test_progress_counts_bytes(file: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    tensors = [tensor("one.weight", NUMBERS, 3), tensor("two.weight", NUMBERS)]
    write_gguf(file, Contents("llama", {}, tensors), progress=lambda *step: heard.append(step))
    assert heard == [
        ("one.weight", 28, 168),
        ("one.weight", 56, 168),
        ("one.weight", 84, 168),
        ("two.weight", 168, 168),
    ]


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DoesNotFitError, "No space left on device"),
        (OSError(errno.EIO, "Input/output error"), FileError, "Input/output error"),
        (FileError("source", "damaged"), FileError, "source: damaged"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (MemoryError(), MemoryError, None),
    ],
)
@pytest.mark.parametrize("existing", [True, False])
def test_nothing_is_left_after_a_failure(
    file: Path, error: BaseException, raised: type[BaseException], text: str | None, existing: bool
) -> None:
    if existing:
        file.write_bytes(b"old")
    with pytest.raises(raised, match=text):
        write_gguf(file, Contents("llama", {}, [tensor("one.weight", NUMBERS), failing(error)]), force=True)
    assert [(p.name, p.read_bytes()) for p in file.parent.iterdir()] == (
        [("out.gguf", b"old")] if existing else []
    )


def test_the_rename_comes_last(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file is there until the new one is on the disk."""
    file.write_bytes(b"old")
    seen: list[bytes] = []
    sync = os.fsync

    def fsync(number: int) -> None:
        seen.append(file.read_bytes()[:4])
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_gguf(file, Contents("llama", {}, [tensor("one.weight", NUMBERS)]), force=True)
    assert seen == [b"old", b"GGUF"]


def test_a_full_disk_is_seen_before_the_tensors(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(file.parent)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFitError, match=r"10 bytes free \(84 needed\)") as caught:
        write_gguf(file, Contents("llama", {}, [failing(AssertionError())]))
    assert caught.value.exit_code == 4
    assert list(file.parent.iterdir()) == []


def test_a_tensor_of_another_size(file: Path) -> None:
    short = OutputTensor("short.weight", GGMLQuantizationType.F32, (7, 4), 112, tensor("", NUMBERS).chunks)
    with pytest.raises(FileError, match="short.weight: 84 bytes made"):
        write_gguf(file, Contents("llama", {}, [short]))
    assert list(file.parent.iterdir()) == []


def test_force(file: Path) -> None:
    file.write_bytes(b"old")
    with pytest.raises(SettingError, match=r"out\.gguf \(exists already\); use --force") as caught:
        write_gguf(file, Contents("llama", {}, []))
    assert caught.value.exit_code == 2
    assert file.read_bytes() == b"old"


def check(path: Path, **settings: Any) -> HotcoldError:
    with pytest.raises(HotcoldError) as caught:
        check_output(path, **settings)
    return caught.value


def test_destinations_that_are_refused(file: Path) -> None:
    assert "must exist" in str(check(file / "sub" / "x.gguf"))
    assert "is a directory" in str(check(file.parent))
    file.write_bytes(b"source")
    os.link(file, file.parent / "link")
    (file.parent / "symlink").symlink_to(file)
    for name in ("out.gguf", "link", "symlink"):
        error = check(file.parent / name, sources=[file.parent / "absent", file], force=True)
        assert "is the input" in str(error)
        assert error.exit_code == 2


def test_a_new_file_has_the_usual_rights(file: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_gguf(file, Contents("llama", {}, []))
    finally:
        os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o640
