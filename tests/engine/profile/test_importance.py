"""What each column of a matrix reads: sums of squares as a NumPy pass has them, in the form that convert takes."""

from pathlib import Path
from typing import Any

import hf_forward
import hf_models
import numpy as np
import pytest
from commands import run
from gguf import GGMLQuantizationType, GGUFReader
from numpy.typing import NDArray

from hotcold import load
from hotcold.engine.profile.corpus import Text
from hotcold.engine.profile.importance import measure_importance
from hotcold.errors import FileError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.architectures.table import of_layer
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.convert.importance import read_importance
from hotcold.gguf_io.imatrix import write_imatrix

IDS = np.array([1, 30, 4, 7, 39, 30, 2, 11, 0, 25, 3, 3, 17], np.int32)
CHUNKS = [IDS, IDS[::-1].copy(), IDS[3:5].copy()]
DATA = Path(__file__).parents[2] / "data" / "llamacpp"
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"hidden_act": "relu"}),  # its down projection has a row a neuron
    ("qwen3", {}),
    ("gemma3", {}),
    ("falcon-7b", {}),
    ("falcon-40b", {}),
    ("opt", {}),
]


def squares(
    model: hf_models.HFDirectory, architecture: str, patch: pytest.MonkeyPatch
) -> dict[str, NDArray[np.float64]]:
    """Sums of squares of what each matrix of a layer reads, by its name in llama.cpp's files."""
    found: dict[str, NDArray[np.float64]] = {}
    linear = hf_forward._Model.linear

    def heard(self: Any, x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        found[name] = found.get(name, 0) + (x**2).sum(0)
        return linear(self, x, name)

    patch.setattr(hf_forward._Model, "linear", heard)
    for chunk in CHUNKS:
        hf_forward.forward(model, chunk)
    rules = [rule for i in range(9) for rule in of_layer(ARCHITECTURES[architecture].layer, i)]
    names = {rule.source.removesuffix(".weight"): rule.name for rule in rules}
    return {names[source]: sums for source, sums in found.items() if source in names}


@pytest.mark.parametrize(("kind", "changes"), KINDS)
@pytest.mark.parametrize("n_batch", [4, 32])
def test_sums_are_those_of_a_numpy_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict[str, Any], n_batch: int
) -> None:
    model = hf_models.make(tmp_path / "model", kind, dtype="float32", **changes)
    path, out = tmp_path / "m.gguf", tmp_path / "imatrix.gguf"
    convert(model.folder, None, path, "f32")
    with load(path, n_ctx=32, n_batch=n_batch, sparsity="off", kv_type="f32", device="cpu") as engine:
        taking = engine.executor.taking
        found = measure_importance(engine, CHUNKS, [Text("a.txt", b"")])
        assert engine.executor.taking is taking
        architecture = engine.model.architecture
    wanted = squares(model, architecture, monkeypatch)
    assert found.n_tokens == 28 and found.sums.keys() == wanted.keys()
    for name, sums in wanted.items():
        assert np.abs(found.sums[name] - sums).max() <= 1e-5 * sums.max(), name
    write_imatrix(out, found)
    with open_gguf(path) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
    means = read_importance(out, shapes)
    assert means.keys() == wanted.keys()
    for name, sums in wanted.items():
        assert np.allclose(means[name], sums / 28, rtol=1e-3, atol=1e-5 * sums.max())


def test_the_form_is_llama_cpps(tmp_path: Path) -> None:
    with load(DATA / "llama.q4_k.gguf", n_ctx=32, device="cpu", sparsity="off") as engine:
        found = measure_importance(engine, CHUNKS, [Text("a.txt", b""), Text("b.txt", b"")])
    write_imatrix(tmp_path / "i.gguf", found)
    made = GGUFReader(tmp_path / "i.gguf")
    values = {key: made.fields[key].contents() for key in made.fields}
    assert (values["general.type"], values["imatrix.datasets"]) == ("imatrix", ["a.txt", "b.txt"])
    assert (values["imatrix.chunk_count"], values["imatrix.chunk_size"]) == (3, 32)
    tensors = {tensor.name: tensor for tensor in made.tensors}
    with open_gguf(DATA / "llama.q4_k.gguf") as file:
        matrices = {n: i for n, i in file.tensors.items() if n.startswith("blk.") and len(i.ne) == 2}
    assert tensors.keys() == {name + end for name in matrices for end in (".in_sum2", ".counts")}
    for name, info in matrices.items():
        assert list(tensors[f"{name}.in_sum2"].shape) == [info.ne[0], 1]
        assert tensors[f"{name}.counts"].data.tolist() == [[28.0]]
        assert tensors[f"{name}.in_sum2"].tensor_type is GGMLQuantizationType.F32


def test_the_command_and_what_it_refuses(tmp_path: Path) -> None:
    text, out, model = tmp_path / "text.txt", tmp_path / "i.gguf", DATA / "llama.f16.gguf"
    text.write_text("Once upon a time there was a small house by the sea. " * 8)
    given = ("imatrix", "-m", str(model), "-f", str(text), "-o", str(out), "-c", "32")
    shown = run(*given)
    assert shown.returncode == 0 and "matrices" in shown.stdout, shown.stderr
    convert(model, None, tmp_path / "with.gguf", "q4_1", imatrix=out)
    convert(model, None, tmp_path / "without.gguf", "q4_1")
    assert (tmp_path / "with.gguf").read_bytes() != (tmp_path / "without.gguf").read_bytes()
    before = out.read_bytes()
    assert run(*given).returncode == 2 and out.read_bytes() == before
    assert run(*given, "--force").returncode == 0 and out.read_bytes() == before
    for arguments, code, said in (
        (("-b", "3", "--force"), 2, "at least 4"),
        (("-m", str(DATA / "qwen3moe.f16.gguf"), "--force"), 2, "a mixture of experts"),
        (("-o", str(text), "--force"), 2, "is the input"),
    ):
        shown = run(*given, *arguments)
        assert (shown.returncode, said in shown.stderr) == (code, True), shown.stderr
    assert out.read_bytes() == before


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    data = bytearray((DATA / "llama.f16.gguf").read_bytes())
    with open_gguf(DATA / "llama.f16.gguf") as file:
        at = file.tensors["blk.0.attn_v.weight"].offset
    data[at : at + 2] = b"\x00\x7e"
    path.write_bytes(data)
    with (
        load(path, n_ctx=32, device="cpu", sparsity="off") as engine,
        pytest.raises(FileError, match="input of"),
    ):
        measure_importance(engine, CHUNKS, [])
