"""Activation counts from `.npy`, `.pt` and the metadata of a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.firing_counts import counts_in_metadata, read_counts

N_FF = 8
COUNTS = np.arange(N_FF)


def save(folder: Path, *layers: NDArray[Any]) -> Path:
    for i, counts in enumerate(layers):
        np.save(folder / f"activation_{i}.npy", counts)
    return folder


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<u4", "<f4", "<f8", "<u8"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    counts = read_counts(save(tmp_path, COUNTS.astype(dtype), COUNTS[::-1].astype(dtype)), 2, N_FF)
    assert counts is not None
    assert [layer.tolist() for layer in counts] == [COUNTS.tolist(), COUNTS[::-1].tolist()]
    assert all(layer.dtype == np.uint64 for layer in counts)


@pytest.mark.parametrize("dtype", ["<i8", "<i4", "<f4", "<f8", "<f2"])
def test_pt(tmp_path: Path, torch_program: Any, dtype: str) -> None:
    for i in range(2):
        torch_program.save(tmp_path / f"activation_{i}.pt", COUNTS.astype(dtype))
    counts = read_counts(tmp_path, 2, N_FF)
    assert counts is not None
    assert [layer.tolist() for layer in counts] == [COUNTS.tolist()] * 2


def test_no_counts(tmp_path: Path) -> None:
    assert read_counts(tmp_path, 2, N_FF) is None
    assert read_counts(tmp_path / "absent", 2, N_FF) is None


def test_layers_are_read_in_number_order(tmp_path: Path) -> None:
    """Sorted by name, layer 10 would come before layer 2."""
    counts = read_counts(save(tmp_path, *(np.full(N_FF, i) for i in range(12))), 12, N_FF)
    assert counts is not None
    assert [int(layer[0]) for layer in counts] == list(range(12))


def refusal(folder: Path, n_layer: int = 1) -> str:
    with pytest.raises(FileError) as caught:
        read_counts(folder, n_layer, N_FF)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_another_number_of_layers(tmp_path: Path) -> None:
    save(tmp_path, COUNTS, COUNTS)
    assert "the model has 1 layers" in refusal(tmp_path, 1)
    assert "no file for layer 2, 3" in refusal(tmp_path, 4)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (np.arange(N_FF + 1), "[9] (the model needs numbers [8])"),
        (np.zeros((2, 4)), "[2, 4] (the model needs numbers [8])"),
        (COUNTS - 1, "from -1 to 6"),
        (COUNTS / 2, "whole numbers"),
        (np.full(N_FF, np.nan), "NaN"),
        (np.full(N_FF, np.inf), "infinity"),
        (np.full(N_FF, 1e30), "2^63"),
        (COUNTS.astype(complex), "complex"),
        (COUNTS.astype("U1"), "<U1"),
        (COUNTS > 3, "bool"),
    ],
)
def test_no_counts_of_this_model(tmp_path: Path, counts: NDArray[Any], text: str) -> None:
    assert text in refusal(save(tmp_path, counts))


class Evil:
    """Pickles as a call of Path.mkdir."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (self.target,)


def test_an_npy_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "activation_0.npy", np.array([Evil(tmp_path / "harm")] * N_FF), allow_pickle=True)
    assert "object [8]" in refusal(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_a_header_that_claims_memory(tmp_path: Path) -> None:
    file = tmp_path / "activation_0.npy"
    save(tmp_path, COUNTS)
    file.write_bytes(file.read_bytes().replace(b"(8,), }" + b" " * 10, b"(99999999999,), }"))
    assert "int64 [99999999999] (the model needs numbers [8])" in refusal(tmp_path)


def test_every_changed_byte_of_the_header(tmp_path: Path) -> None:
    file = save(tmp_path, COUNTS) / "activation_0.npy"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    assert "65 bytes of numbers" in refusal(tmp_path)
    for position in range(len(content) - 8 * N_FF):
        for value in (0, 40, 91, 255):
            file.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            try:
                read_counts(tmp_path, 1, N_FF)
            except FileError as error:
                assert "activation_0.npy" in str(error)


def test_a_pt_of_another_length(tmp_path: Path, torch_program: Any) -> None:
    torch_program.save(tmp_path / "activation_0.pt", np.zeros(9))
    assert "shape [9] (the model needs numbers [8])" in refusal(tmp_path)
    torch_program.save(tmp_path / "activation_0.pt", np.zeros(8, np.uint16))
    assert "BF16" in refusal(tmp_path)


def test_metadata() -> None:
    metadata = {"general.name": "x", "hotcold.activation.0": COUNTS, "hotcold.activation.1": COUNTS[::-1]}
    counts = counts_in_metadata(metadata, 2, N_FF)
    assert counts is not None
    assert [layer.tolist() for layer in counts] == [COUNTS.tolist(), COUNTS[::-1].tolist()]
    assert counts_in_metadata({"general.name": "x"}, 2, N_FF) is None


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"hotcold.activation.0": COUNTS}, "hotcold.activation.1: missing"),
        ({f"hotcold.activation.{i}": COUNTS for i in range(3)}, "hotcold.activation.2: present"),
        ({"hotcold.activation.0": COUNTS, "hotcold.activation.1": COUNTS[:7]}, "[7]"),
        ({"hotcold.activation.0": COUNTS, "hotcold.activation.1": "text"}, "the model needs numbers [8]"),
        ({"hotcold.activation.0": COUNTS, "hotcold.activation.1": -COUNTS}, "from -7 to 0"),
    ],
)
def test_metadata_of_another_model(metadata: dict[str, Any], text: str) -> None:
    with pytest.raises(FileError) as caught:
        counts_in_metadata(metadata, 2, N_FF)
    assert text in str(caught.value)
