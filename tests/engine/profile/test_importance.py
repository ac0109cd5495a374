"""What each column of a matrix reads: sums of squares as a NumPy pass has them, in the form that convert takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_forward
import hf_models
import hf_shapes
import numpy as np
import pytest
from commands import run
from gguf import GGMLQuantizationType, GGUFReader
from numpy.typing import NDArray

from hotcold import load
from hotcold.engine.profile.corpus import Text
from hotcold.engine.profile.importance import measure_importance
from hotcold.errors import FileError
from hotcold.gguf_io import blocks, open_gguf
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
    ("mixtral", {}),
    ("qwen3_moe", {}),
    ("qwen2_moe", {}),
    ("smallthinker", {}),
]


def squares(
    model: hf_models.HFDirectory, architecture: str, patch: pytest.MonkeyPatch
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Sums of squares of what each matrix of a layer reads, and of how much, by its name in llama.cpp's files."""
    found: dict[str, NDArray[np.float64]] = {}
    numbers: dict[str, int] = {}
    linear = hf_forward._Model.linear

    def heard(self: Any, x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        found[name] = found.get(name, 0) + (x**2).sum(0)
        numbers[name] = numbers.get(name, 0) + len(x)
        return linear(self, x, name)

    patch.setattr(hf_forward._Model, "linear", heard)
    for chunk in CHUNKS:
        hf_forward.forward(model, chunk)
    table, config = ARCHITECTURES[architecture], model.config
    mixture = "num_local_experts" in config or "num_experts" in config or architecture == "smallthinker"
    layer = table.experts.layer if mixture and table.experts is not None else table.layer
    sums, counts = dict[str, NDArray[np.float64]](), dict[str, NDArray[np.float64]]()
    for rule in (rule for i in range(9) for rule in of_layer(layer, i)):
        n = hf_shapes.expert_sizes(config)[0] if "{e}" in rule.source else 1
        sources = [rule.source.removesuffix(".weight").format(e=e) for e in range(n)]
        if seen := [found[source] for source in sources if source in found]:
            nothing = np.zeros_like(seen[0])
            sums[rule.name] = np.array([found.get(source, nothing) for source in sources])
            counts[rule.name] = np.array([numbers.get(source, 0) for source in sources], np.float64)
    return sums, counts


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
    wanted, counts = squares(model, architecture, monkeypatch)
    assert found.n_tokens == 28 and found.sums.keys() == found.counts.keys() == wanted.keys()
    for name, sums in wanted.items():
        assert np.array_equal(found.counts[name], counts[name]), name
        assert np.abs(found.sums[name] - sums).max() <= 1e-5 * sums.max(), name
    write_imatrix(out, found)
    with open_gguf(path) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
    means = read_importance(out, shapes)
    assert means.keys() == wanted.keys() & shapes.keys()  # a down projection by neuron has none
    assert all("ffn_down" in name for name in wanted.keys() - means.keys())
    for name, sums in wanted.items():
        if name not in means:
            continue
        mean = np.where(counts[name][:, None], sums / np.maximum(counts[name], 1)[:, None], 1)
        assert np.allclose(means[name], mean, rtol=1e-3, atol=1e-5 * sums.max())


@pytest.mark.parametrize("name", ["qwen3moe.f16", "smallthinker.f16", "mixtral.f16"])
def test_experts_have_a_row_each_as_llama_cpp_has_them(tmp_path: Path, name: str) -> None:
    """In one tensor of all, whether the file has their down projections with a row an output or a neuron."""
    source, turned, found = DATA / f"{name}.gguf", tmp_path / "turned.gguf", []
    convert(source, None, turned, "f16", sparse_layout=True)
    for path in (source, turned):
        with load(path, n_ctx=32, device="cpu", sparsity="off") as engine:
            found.append(measure_importance(engine, CHUNKS, [Text("a.txt", b"")]))
    experts = engine.model.experts
    assert experts is not None
    write_imatrix(tmp_path / "i.gguf", found[0])
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "i.gguf").tensors}
    for part, width in (("gate", engine.model.n_embd), ("up", engine.model.n_embd), ("down", experts.n_ff)):
        matrix = f"blk.1.ffn_{part}_exps.weight"
        assert list(tensors[f"{matrix}.in_sum2"].shape) == [width, experts.n_expert]
        counts = tensors[f"{matrix}.counts"]
        assert list(counts.shape) == [1, experts.n_expert] and counts.data.sum() == 28 * experts.n_used
    assert found[0].sums.keys() == found[1].sums.keys()
    for matrix, sums in found[0].sums.items():
        assert np.abs(found[1].sums[matrix] - sums).max() <= 1e-3 * sums.max(), matrix
    for path in (source, turned):  # what is by neuron is rounded without weights
        convert(path, None, tmp_path / "out.gguf", "q4_1", imatrix=tmp_path / "i.gguf", force=True)


def test_experts_weigh_errors_by_their_own_inputs(tmp_path: Path) -> None:
    source, matrix = DATA / "qwen3moe.f16.gguf", "blk.0.ffn_up_exps.weight"
    with load(source, n_ctx=32, device="cpu", sparsity="off") as engine:
        found = measure_importance(engine, CHUNKS, [Text("a.txt", b"")])
    write_imatrix(tmp_path / "i.gguf", found)
    convert(source, None, tmp_path / "out.gguf", "q4_1", imatrix=tmp_path / "i.gguf")
    with open_gguf(source) as file, open_gguf(tmp_path / "out.gguf") as made:
        info = file.tensors[matrix]
        exact = blocks.dequantize(file.data(matrix), info.type).reshape(info.shape)
        held = made.data(matrix).reshape(len(exact), -1)
    counts = found.counts[matrix]
    assert 0 == counts.min() < counts.max()  # who was never chosen weighs all alike
    for e, numbers in enumerate(exact):
        sums = found.sums[matrix][e].astype(np.float32)
        mean = sums / np.float32(counts[e]) if counts[e] else np.ones_like(sums)
        wanted = blocks.quantize(numbers, GGMLQuantizationType.Q4_1, mean)
        assert np.array_equal(held[e], wanted.reshape(-1)), e


def test_the_imatrix_of_another_mixture_is_refused(tmp_path: Path) -> None:
    with load(DATA / "qwen3moe.f16.gguf", n_ctx=32, device="cpu", sparsity="off") as engine:
        found = measure_importance(engine, CHUNKS, [Text("a.txt", b"")])
    more = {n: np.concatenate([s, s[:1]]) if "_exps" in n else s for n, s in found.sums.items()}
    counts = {n: np.concatenate([c, c[:1]]) if "_exps" in n else c for n, c in found.counts.items()}
    for sums, said in ((more, r"matrices of blk\.0\.ffn_\w+_exps"), (found.sums, "counts .one for each of")):
        write_imatrix(tmp_path / "i.gguf", replace(found, sums=sums, counts=counts), force=True)
        with pytest.raises(FileError, match=said):
            convert(
                DATA / "qwen3moe.f16.gguf", None, tmp_path / "o.gguf", "q4_1", imatrix=tmp_path / "i.gguf"
            )
    write_imatrix(tmp_path / "i.gguf", found, force=True)
    for other in ("olmoe.f16", "llama.f16"):
        with pytest.raises(FileError, match="of another model"):
            convert(DATA / f"{other}.gguf", None, tmp_path / "o.gguf", "q4_1", imatrix=tmp_path / "i.gguf")


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
