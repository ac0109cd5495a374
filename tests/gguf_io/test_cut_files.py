"""Files that a model is converted from, cut at every byte: each is said to be cut, whatever was lost."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import save_safetensors
from numpy.typing import NDArray

from hotcold.gguf_io.errors import TruncatedError
from hotcold.gguf_io.firing_counts import read_counts
from hotcold.gguf_io.safetensors_file import open_safetensors
from hotcold.gguf_io.torch_pickle import open_state_dict, open_tensor

ARRAYS: dict[str, NDArray[Any]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(5, np.float16),
}
COUNTS = np.arange(7, dtype=np.int64)

Open = Callable[[Path], Any]


def counts_of(path: Path) -> Any:
    return read_counts(path.parent, 1, len(COUNTS))


def save_npy(path: Path, version: tuple[int, int]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, COUNTS, version)


@pytest.fixture(params=["safetensors", "state dict", "tensor", "npy 1.0", "npy 2.0"])
def whole(request: pytest.FixtureRequest, tmp_path: Path, torch_program: Any) -> tuple[Path, Open]:
    """A file of a kind, and what opens it."""
    kind, path = request.param, tmp_path / "activation_0.npy"
    if kind == "safetensors":
        save_safetensors(path, ARRAYS)
        return path, open_safetensors
    if kind == "state dict":
        torch_program.save(path, ARRAYS)
        return path, open_state_dict
    if kind == "tensor":
        path = path.with_suffix(".pt")
        torch_program.save(path, COUNTS)
        return path, counts_of
    save_npy(path, (1, 0) if kind == "npy 1.0" else (2, 0))
    return path, counts_of


def test_a_file_that_is_cut_anywhere(whole: tuple[Path, Open]) -> None:
    path, open_file = whole
    open_file(path)
    for n_bytes in reversed(range(path.stat().st_size)):
        os.truncate(path, n_bytes)
        with pytest.raises(TruncatedError, match=r"^\S*activation_0\S*: .*; the file is cut short") as caught:
            open_file(path)
        assert "byte" in str(caught.value)


@pytest.mark.parametrize("n_lost", [1, 30, 100])
def test_a_file_that_is_cut_between_opening_and_reading(
    tmp_path: Path, torch_program: Any, n_lost: int
) -> None:
    """Of several gigabytes, it can be."""
    path = tmp_path / "model"
    save_safetensors(path, {"a": np.ones(100, np.float32)})
    stored = open_safetensors(path)["a"]
    os.truncate(path, path.stat().st_size - n_lost)
    with pytest.raises(TruncatedError, match="100 were there when it was opened"):
        stored.read()
    torch_program.save(path, np.ones(100, np.float32))
    pickled = open_tensor(path)
    os.truncate(path, path.stat().st_size - n_lost)
    with pytest.raises(TruncatedError, match="cut short"):
        pickled.read()


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 4, 100])
def test_what_begins_otherwise_is_not_cut(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "activation_0.npy"
    path.write_bytes(b"<html>".ljust(n_bytes)[:n_bytes])
    for open_file in (open_state_dict, counts_of):
        with pytest.raises(Exception, match="no zip archive|no .npy array") as caught:
            open_file(path)
        assert not isinstance(caught.value, TruncatedError)
