"""The index file: PowerInfer's own, ours, and bad ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotcold.engine.model.load import load_model
from hotcold.engine.plan.gpu_index import for_powerinfer, hottest
from hotcold.errors import FileError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.gpuidx import (
    GpuIndex,
    Identity,
    index_bytes,
    index_path,
    is_foreign,
    read_index,
    write_index,
)

DATA = Path(__file__).parent.parent / "data" / "powerinfer"
MODEL = DATA / "llama-f16.powerinfer.gguf"
RECORDED = index_path(MODEL)
IDENTITY = Identity("ab" * 32, 123, 1 << 33, 2048)


def ids(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(numbers, np.int32)


def test_powerinfers_own_file_is_written_byte_for_byte() -> None:
    counts = np.load(DATA / "llama-activation.npz")
    layers = [counts["activation_0"], counts["activation_1"]]
    hot = [hottest(c, int(n) + 100) for c, n in zip(layers, counts["hot"], strict=True)]
    with open_gguf(MODEL) as file:
        index = for_powerinfer(load_model(file), hot, layers)
    assert [each.size for each in index.hot] == counts["hot"].tolist()
    assert index.capacity == counts["vram_capacity"]
    assert index_bytes(index, 1024) == RECORDED.read_bytes()


def test_powerinfers_own_file_is_read() -> None:
    index = read_index(RECORDED, 2, 1024)
    assert [each.size for each in index.hot] == [768, 512]
    assert (index.capacity, index.identity) == (983040, None)
    assert is_foreign(RECORDED)


@given(st.lists(st.sets(st.integers(0, 99)), min_size=1, max_size=4), st.integers(0, 1 << 40))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, sets: list[set[int]], n: int
) -> None:
    path = tmp_path_factory.mktemp("index") / "m.generated.gpuidx"
    index = GpuIndex(tuple(ids(*sorted(each)) for each in sets), n, IDENTITY)
    write_index(path, index, 100)
    back = read_index(path, len(sets), 100)
    assert [each.tolist() for each in back.hot] == [each.tolist() for each in index.hot]
    assert (back.capacity, back.identity) == (n, IDENTITY)
    assert not is_foreign(path)


def test_a_file_of_someone_else_is_never_overwritten(tmp_path: Path) -> None:
    for content in (RECORDED.read_bytes(), b"notes", b""):
        path = tmp_path / "m.generated.gpuidx"
        path.write_bytes(content)
        with pytest.raises(FileError, match="hotcold did not write it"):
            write_index(path, GpuIndex((ids(),), 0, IDENTITY), 100)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_our_own_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.generated.gpuidx"
    for numbers in (ids(1), ids(2, 3)):
        write_index(path, GpuIndex((numbers,), 0, IDENTITY), 100)
    assert read_index(path, 1, 100).hot[0].tolist() == [2, 3]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        write_index(tmp_path / "none" / "m", GpuIndex((ids(),), 0), 100)


@pytest.mark.parametrize(
    ("n_layer", "n_ff", "message"),
    [(3, 1024, "two for each of the model's 3 layers"), (2, 1000, "the model has 1000")],
)
def test_an_index_of_another_model(n_layer: int, n_ff: int, message: str) -> None:
    with pytest.raises(FileError, match=message):
        read_index(RECORDED, n_layer, n_ff)


def test_a_model_is_no_index() -> None:
    with pytest.raises(FileError, match="no index"):
        read_index(MODEL, 2, 1024)


@pytest.mark.parametrize(
    ("bucket", "flags", "message"),
    [
        ([3, 1], [1, 3], "ascending"),
        ([1, 1], [1], "ascending"),
        ([-1, 1], [1], "ascending"),
        ([1, 100], [1], "ascending"),
        ([1, 2], [1], "1 neurons marked .gpu_bucket lists 2"),
        ([1, 2], [1, 3], "must list the same"),
    ],
)
def test_contradictions(tmp_path: Path, bucket: list[int], flags: list[int], message: str) -> None:
    path = tmp_path / "bad.generated.gpuidx"
    good = bytearray(index_bytes(GpuIndex((ids(*range(len(bucket))),), 0), 100))
    end = len(good)
    marks = np.zeros(100, np.int32)
    marks[flags] = 1
    good[end - 32 : end - 32 + 4 * len(bucket)] = np.array(bucket, "<i4").tobytes()
    good[end - 32 - 416 : end - 32 - 416 + 400] = marks.tobytes()
    path.write_bytes(good)
    with pytest.raises(FileError, match=message):
        read_index(path, 1, 100)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    data = RECORDED.read_bytes()
    path = tmp_path / "cut.generated.gpuidx"
    for n in [*range(0, 400, 7), 4000, len(data) - 33]:
        path.write_bytes(data[:n])
        with pytest.raises(FileError):
            read_index(path, 2, 1024)


def test_staleness_is_said() -> None:
    assert IDENTITY.stale(IDENTITY) == ""
    other = Identity("cd" * 32, 123, 1, 2048)
    assert IDENTITY.stale(other) == "made for another model and budget"
