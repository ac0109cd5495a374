"""Importance matrices in llama.cpp's form: read, used, and refused by name."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import blocks, open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.convert.importance import read_importance

T = GGMLQuantizationType
TINY = Path(__file__).parents[3] / "models" / "tiny-relu-llama"
MODEL = Path(__file__).parents[2] / "data" / "llamacpp" / "llama.f32.gguf"
Sums = dict[str, tuple[NDArray[np.float32], float]]


def sums_of_model() -> Sums:
    """For each matrix of a layer sums of squares, and how many were summed."""
    random = np.random.default_rng(3)
    with open_gguf(MODEL) as file:
        return {
            name: (random.random((1, info.ne[0]), np.float32) * 50, 5.0)
            for name, info in file.tensors.items()
            if name.startswith("blk.") and len(info.ne) == 2
        }


def write_imatrix(path: Path, sums: Sums, kind: str = "imatrix") -> Path:
    writer = GGUFWriter(path, "")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (squares, count) in sums.items():
        writer.add_tensor(f"{name}.in_sum2", squares)
        writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_each_column_weighs_its_mean_square(tmp_path: Path) -> None:
    sums = sums_of_model()
    path, out = write_imatrix(tmp_path / "imatrix.gguf", sums), tmp_path / "out.gguf"
    convert(MODEL, None, out, "q4_1", imatrix=path)
    with open_gguf(MODEL) as source, open_gguf(out) as made:
        for name, info in source.tensors.items():
            if len(info.ne) == 2 and name.startswith(("token_embd", "blk.0.", "blk.5.")):
                exact = blocks.dequantize(source.data(name), info.type)
                weights = sums[name][0][0] / np.float32(5) if name in sums else None
                assert np.array_equal(made.data(name), blocks.quantize(exact, T.Q4_1, weights)), name
                if weights is not None:
                    assert not np.array_equal(made.data(name), blocks.quantize(exact, T.Q4_1))


def test_inputs_that_were_never_seen_weigh_alike(tmp_path: Path) -> None:
    name = "blk.0.ffn_up.weight"
    path = write_imatrix(tmp_path / "i.gguf", {name: (np.zeros((1, 8), np.float32), 0.0)})
    assert read_importance(path, {name: (4, 8)})[name].tolist() == [[1.0] * 8]


def test_the_down_projection_by_neuron_has_none(tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "i.gguf", {"blk.0.ffn_down.weight": (np.ones((1, 8), np.float32), 1.0)})
    assert "blk.0.ffn_down_t.weight" not in read_importance(path, {"blk.0.ffn_down_t.weight": (8, 4)})


def test_a_matrix_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"^imatrix: .*none\.gguf \(No such file.*; give one that"):
        read_importance(tmp_path / "none.gguf", {})


def refusal(tmp_path: Path, sums: Sums, kind: str = "imatrix") -> str:
    path, out = write_imatrix(tmp_path / "imatrix.gguf", sums, kind), tmp_path / "out.gguf"
    with pytest.raises(FileError) as caught:
        convert(MODEL, None, out, "q4_1", imatrix=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["imatrix.gguf"]
    return str(caught.value)


def test_one_of_another_model(tmp_path: Path) -> None:
    sums = sums_of_model()
    odd = np.ones((1, 96), np.float32), 1.0
    assert "96 columns of blk.0.ffn_up.weight (the model's has 128)" in refusal(
        tmp_path, sums | {"blk.0.ffn_up.weight": odd}
    )
    assert "blk.2.ffn_up.weight (the model has no such matrix); it is of another model" in refusal(
        tmp_path, sums | {"blk.2.ffn_up.weight": odd}
    )
    del sums["blk.1.attn_v.weight"]
    assert "nothing for blk.1.attn_v.weight (the model has blk.1.attn_v.weight)" in refusal(tmp_path, sums)


def test_what_is_no_importance_matrix(tmp_path: Path) -> None:
    assert "general.type model (an importance matrix has imatrix)" in refusal(
        tmp_path, sums_of_model(), "model"
    )
    for bad in (np.nan, np.inf, -1):
        sums = sums_of_model()
        sums["blk.0.ffn_up.weight"][0][0, 5] = bad
        assert "blk.0.ffn_up.weight: NaN, infinite or below 0" in refusal(tmp_path, sums)


def test_the_importance_matrix_is_never_overwritten(tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "imatrix.gguf", sums_of_model())
    before = path.read_bytes()
    for model in (MODEL, TINY):
        with pytest.raises(SettingError, match="is the input"):
            convert(model, None, path, "q4_1", imatrix=path, force=True)
    assert path.read_bytes() == before
