"""Every architecture node by node: the executor against NumPy on the same graph, and rows it may not read."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import Case, budget_bytes

from hotcold import load
from hotcold.engine.graph import architectures
from hotcold.engine.graph.graph import Graph, Node, Tensor
from hotcold.engine.measure.traffic import dense_bytes, ffn_bytes, token_bytes
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.profile import profile as profiles
from hotcold.engine.profile.profile import measure
from hotcold.engine.run.executor import Executor
from hotcold.errors import SettingError
from hotcold.gguf_io import GGUFFile, blocks, open_gguf
from hotcold.kernels import ref

F32 = NDArray[np.float32]
LogitsOf = Callable[[Executor, NDArray[np.int32], int], F32]

IDS = np.array([1, 30, 400, 7, 55, 91], np.int32)
FILES = [
    "powerinfer/llama-f16.powerinfer",
    "powerinfer/bamboo-f16.powerinfer",
    "powerinfer/falcon-f16.powerinfer",
    "powerinfer/opt-f16.powerinfer",
]


class Oracle:
    """Runs a graph of all tokens at once, at positions 0, 1, ...; float32 between nodes.

    Attributes:
        values: every node's result by name.
        hidden: by FFN node, [n_tokens, n_ff] before `down`.
        gates: by FFN node, the products that decide which neurons fire.
    """

    def __init__(self, model: Model, file: GGUFFile, ids: NDArray[np.int32]) -> None:
        self.model, self.file, self.ids = model, file, ids
        self.values: dict[str, Any] = {}
        self.hidden: dict[str, F32] = {}
        self.gates: dict[str, F32] = {}

    def number(self, operand: Tensor | Weight) -> Any:
        if isinstance(operand, Tensor):
            return self.values[operand.name]
        data = self.file.data(operand.name)
        if len(operand.ne) > 1:
            data = data[operand.first_row : operand.first_row + operand.ne[1]]
        return blocks.dequantize(data, operand.type).reshape(operand.ne[::-1])

    def run(self, graph: Graph) -> F32:
        for node in graph.nodes:
            result = getattr(self, f"_{node.op}")(node, *map(self.number, node.inputs))
            self.values[node.name] = result.astype(np.float32) if result.dtype == np.float64 else result
        logits: F32 = self.values[graph.nodes[-1].name]
        return logits

    def _embed(self, node: Node, table: F32) -> Any:
        return table[self.ids]

    def _positions(self, node: Node, table: F32) -> Any:
        return table[node.attributes["first"] + np.arange(len(self.ids))]

    def _rms_norm(self, node: Node, x: F32, weight: F32) -> Any:
        return ref.rms_norm(x, weight, node.attributes["eps"])

    def _rms_norm_heads(self, node: Node, x: F32, weight: F32) -> Any:
        heads = x.reshape(len(x), node.attributes["n_head"], -1)
        return ref.rms_norm(heads, weight, node.attributes["eps"]).reshape(x.shape)

    def _layer_norm(self, node: Node, x: F32, weight: F32, bias: F32) -> Any:
        return ref.layer_norm(x, weight, bias, node.attributes["eps"])

    def _mul_mat(self, node: Node, weight: F32, x: F32, bias: F32 | float = 0.0) -> Any:
        return ref.mul_mat(weight, x) + bias

    def _logits(self, node: Node, weight: F32, x: F32) -> Any:
        return ref.mul_mat(weight, x)

    def _add(self, node: Node, a: F32, b: F32) -> Any:
        return ref.add(a, b)

    def _rope(self, node: Node, x: F32) -> Any:
        m, heads = self.model, x.reshape(len(x), node.attributes["n_head"], -1)
        frequencies = ref.rope_frequencies(m.n_rot, m.rope_freq_base, m.rope_scaling.freq_scale)
        positions = np.arange(len(x))
        return ref.rope(heads, positions, frequencies, node.attributes["interleaved"]).reshape(x.shape)

    def _kv_store(self, node: Node, k: F32, v: F32) -> Any:
        return np.stack([each.reshape(len(k), -1, self.model.head_dim) for each in (k, v)])

    def _attention(self, node: Node, q: F32, stored: F32) -> Any:
        heads = q.reshape(len(q), -1, self.model.head_dim)
        return ref.attention(heads, stored[0], stored[1], 0).reshape(q.shape)

    def _predictor(self, node: Node, x: F32, fc1: F32, fc2: F32) -> Any:
        return ref.predictor(x, fc1, fc2, node.attributes["threshold"])

    def _sparse_gated_ffn(self, node: Node, x: F32, *operands: Any) -> Any:
        *mask, gate, up, down_t = operands
        g, u = ref.mul_mat(gate, x), ref.mul_mat(up, x)
        return self._down(
            node, g, u if node.attributes["activation"] == "relu" else ref.relu(u), mask, down_t
        )

    def _sparse_ffn(self, node: Node, x: F32, *operands: Any) -> Any:
        mask = [operand for operand in operands if operand.dtype == bool]
        up, *biases = (operand for operand in operands if operand.dtype != bool)
        up_bias, down_t, down_bias = biases if len(biases) == 3 else (0.0, biases[0], 0.0)
        g = ref.mul_mat(up, x) + up_bias
        return self._down(node, g, np.ones_like(g), mask, down_t) + down_bias

    def _down(self, node: Node, g: Any, u: Any, mask: list[Any], down_t: F32) -> Any:
        h = np.where(mask[0], ref.relu(g) * u, 0) if mask else ref.relu(g) * u
        self.gates[node.name], self.hidden[node.name] = g, h
        return h @ down_t.astype(np.float64)


def executor(file: GGUFFile, sparsity: str, **settings: Any) -> Executor:
    options: dict[str, Any] = {"n_ctx": 16, "n_batch": 4, "n_threads": 2, "kv_type": "f32"} | settings
    n_threads = options.pop("n_threads")
    return Executor(plan_for_cpu(load_model(file), Wanted(sparsity, **options)), file, n_threads)


@pytest.mark.parametrize("sparsity", ["exact", "predictor"])
@pytest.mark.parametrize("name", FILES)
def test_logits_are_the_oracles(
    name: str,
    sparsity: str,
    data: Path,
    distance: Callable[[F32, F32], float],
    logits_of: LogitsOf,
) -> None:
    with open_gguf(data / f"{name}.gguf") as file, executor(file, sparsity) as it:
        graph = architectures.build(it.model, len(IDS), sparsity)
        wanted = Oracle(it.model, file, IDS).run(graph)
        for step in (1, 3, 4):
            assert distance(logits_of(it, IDS, step), wanted) <= 1e-5


@pytest.mark.parametrize("sparsity", ["exact", "predictor"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_split", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_profiles_count_what_the_oracle_counts(
    name: str, sparsity: str, is_split: bool, data: Path, compiler: str
) -> None:
    """To the integer, of the neurons that a mode computes, on the CPU and on both sides of a split."""
    path, how = data / f"{name}.gguf", dict[str, Any](n_ctx=32, n_batch=4, kv_type="f32", sparsity=sparsity)
    with open_gguf(path) as file:
        model = load_model(file)
        oracle = Oracle(model, file, IDS)
        oracle.run(architectures.build(model, len(IDS), sparsity))
    if is_split:
        n_bytes = budget_bytes(model, Case(sparsity, n_batch=4), "dense + 50%")
        how |= {"device": "emulated", "vram_budget": f"{-(-n_bytes // 1024)}KiB"}
    with load(path, **how) as engine:
        n_hot = sum(split.n_hot for split in engine.executor.plan.layers)
        counted = measure(engine, [IDS], profiles.empty(engine, 1))
    assert (0 < n_hot < model.n_layer * model.n_ff) == is_split
    wanted = [(h != 0).sum(0) for h in oracle.hidden.values()]
    assert (counted.counts == wanted).all() and counted.n_tokens == len(IDS)


@pytest.mark.parametrize("sparsity", ["off", "exact", "predictor"])
@pytest.mark.parametrize("name", [*FILES[1:], "powerinfer/opt-q4_0.powerinfer"])
def test_bits_do_not_depend_on_threads(name: str, sparsity: str, data: Path, logits_of: LogitsOf) -> None:
    seen = set()
    with open_gguf(data / f"{name}.gguf") as file:
        for n_threads in (1, 2, 3):
            with executor(file, sparsity, n_threads=n_threads) as it:
                seen |= {(step, logits_of(it, IDS, step).tobytes()) for step in (1, 4)}
    assert len(seen) == 2


def test_gelu_has_no_exact_zeros(data: Path) -> None:
    with (
        open_gguf(data / "llamacpp" / "falcon.f16.gguf") as file,
        pytest.raises(SettingError, match="gelu has no exact zeros"),
    ):
        executor(file, "exact")


def nan_rows(file: GGUFFile, weight: Weight | None, rows: NDArray[np.int64], image: bytearray) -> None:
    """NaN into some rows of an F16 weight, in a copy of the file."""
    if weight is None:
        return
    info = file.tensors[weight.name]
    for r in rows:
        at = info.offset + int(r) * info.row_bytes
        image[at : at + info.row_bytes] = b"\xff" * info.row_bytes


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("step", [1, 4])
def test_exact_reads_down_rows_of_firing_neurons_alone(
    name: str, step: int, data: Path, logits_of: LogitsOf, tmp_path: Path
) -> None:
    """With a gate, `up` rows too; without one, all rows of `up` are read and none is NaN."""
    ids, path = IDS[:4], data / f"{name}.gguf"
    image = bytearray(path.read_bytes())
    with open_gguf(path) as file, executor(file, "exact") as it:
        oracle = Oracle(it.model, file, ids)
        oracle.run(architectures.build(it.model, 4, "exact"))
        for i, layer in enumerate(it.model.layers):
            never = np.flatnonzero((oracle.gates[f"ffn_out-{i}"] < -1e-3).all(0))
            silent = np.flatnonzero((oracle.hidden[f"ffn_out-{i}"] == 0).all(0))
            assert len(never) > 20
            if layer.ffn_gate is not None:
                nan_rows(file, layer.ffn_up, never, image)
            nan_rows(file, layer.down, np.union1d(never, _surely(silent, oracle, i)), image)
        wanted = logits_of(it, ids, step)
    changed = tmp_path / "nan.gguf"
    changed.write_bytes(image)
    with open_gguf(changed) as file, executor(file, "exact") as it:
        assert logits_of(it, ids, step).tobytes() == wanted.tobytes()


def _surely(silent: NDArray[np.int64], oracle: Oracle, i: int) -> NDArray[np.int64]:
    """Silent neurons whose `gate` is positive for some token: it is `up` that silences them, as in Bamboo."""
    return silent[(oracle.gates[f"ffn_out-{i}"][:, silent] > 1e-3).any(0)]


def test_bamboo_leaves_out_neurons_by_their_up(data: Path) -> None:
    """Or the test above would say nothing of them."""
    with open_gguf(data / f"{FILES[1]}.gguf") as file:
        model = load_model(file)
        oracle = Oracle(model, file, IDS[:4])
        oracle.run(architectures.build(model, 4, "exact"))
        silent = np.flatnonzero((oracle.hidden["ffn_out-0"] == 0).all(0))
        assert len(_surely(silent, oracle, 0)) > 20


@pytest.mark.parametrize("step", [1, 4])
def test_a_biased_neuron_that_is_not_listed_adds_nothing(
    step: int, data: Path, distance: Callable[[F32, F32], float], logits_of: LogitsOf, tmp_path: Path
) -> None:
    """With biases of 100 every neuron would fire: the listed ones alone do."""
    path, changed = data / f"{FILES[3]}.gguf", tmp_path / "biased.gguf"
    image = bytearray(path.read_bytes())
    with open_gguf(path) as file:
        info = file.tensors["blk.0.ffn_up.bias"]
        image[info.offset : info.offset + info.n_bytes] = np.full(info.ne[0], 100, np.float32).tobytes()
    changed.write_bytes(image)
    with open_gguf(changed) as file, executor(file, "predictor") as it:
        wanted = Oracle(it.model, file, IDS[:4]).run(architectures.build(it.model, 4, "predictor"))
        assert distance(logits_of(it, IDS[:4], step), wanted) <= 1e-5
        listed, firing = it.counts.sum((0, 1))
    assert 0 < firing == listed < 4 * 1024 / 2


def tensors_of(model: Model, sparsity: str) -> list[str]:
    """Names of the file's tensors that a mode's graph reads, once a weight."""
    graph = architectures.build(model, 1, sparsity)
    return [f"{o.name}@{o.first_row}" for node in graph.nodes for o in node.inputs if isinstance(o, Weight)]


@pytest.mark.parametrize(
    ("name", "sparsity"),
    [
        *itertools.product(FILES, ("off", "exact", "predictor")),
        ("llamacpp/falcon.f16", "off"),
        ("llamacpp/falcon.norm2.q4_0", "off"),
        ("llamacpp/qwen2.f16", "off"),
        ("llamacpp/llama.biases.f16", "off"),
        ("llamacpp/qwen3.f16", "off"),
        ("llamacpp/phi3.f16", "off"),
        ("llamacpp/gemma3.f16", "off"),
        ("llamacpp/granite.q4_0", "off"),
    ],
)
def test_every_weight_of_the_mode_is_used_once(name: str, sparsity: str, data: Path) -> None:
    with open_gguf(data / f"{name}.gguf") as file:
        model = load_model(file)
    used = tensors_of(model, sparsity)
    predictor = set() if sparsity == "predictor" else {"fc1", "fc2"}
    roles = {field.name for field in dataclasses.fields(Layer)} - predictor
    weights = [weight for layer in model.layers for role in roles if (weight := getattr(layer, role))]
    whole = (model.token_embd, model.position_embd, model.output_norm, model.output_norm_bias, model.output)
    weights += [weight for weight in whole if weight is not None]
    assert sorted(used) == sorted(f"{weight.name}@{weight.first_row}" for weight in weights)


@pytest.mark.parametrize("name", FILES)
def test_the_bytes_of_a_token_are_those_of_its_weights(name: str, data: Path) -> None:
    with open_gguf(data / f"{name}.gguf") as file:
        model = load_model(file)
        rows = {"token_embd.weight": 0, "position_embd.weight": 0}
        n_bytes = sum(rows.get(t.name, t.n_bytes) for t in file.tensors.values() if ".fc" not in t.name)
    head = model.output.n_bytes if model.output is model.token_embd else 0
    n_rows = 1 if model.position_embd is None else 2
    assert token_bytes(model) == n_bytes + head + n_rows * 2 * model.n_embd
    layer = model.layers[0]
    row = 2 * model.n_embd
    assert ffn_bytes(layer, 100, 10) == (100 + 10 + 10) * row - (10 * row if layer.ffn_gate is None else 0)
    fc = sum(layer.fc1.n_bytes + layer.fc2.n_bytes for layer in model.layers if layer.fc1 and layer.fc2)
    assert dense_bytes(model, True) - dense_bytes(model, False) == fc


def test_falcons_stacked_attention(data: Path) -> None:
    """Rows of q, then k, then v; two heads of the cache in the one with attn_norm_2."""
    with open_gguf(data / "llamacpp" / "falcon.norm2.q4_0.gguf") as file:
        layer = load_model(file).layers[1]
        with executor(file, "off") as it:
            stacked = file.data("blk.1.attn_qkv.weight")
            parts = [it.host.store.rows(weight) for weight in (layer.attn_q, layer.attn_k, layer.attn_v)]
            assert np.array_equal(np.concatenate(parts), stacked)
            assert [len(part) for part in parts] == [128, 32, 32]
            assert all(np.shares_memory(part, stacked) for part in parts)
            addresses = [
                it.host.store.address(weight) for weight in (layer.attn_q, layer.attn_k, layer.attn_v)
            ]
            assert np.diff(addresses).tolist() == [128 * 72, 32 * 72]


def test_falcon_norms_feed_what_they_should(data: Path) -> None:
    with open_gguf(data / "llamacpp" / "falcon.norm2.q4_0.gguf") as file:
        nodes = {node.name: node for node in architectures.build(load_model(file), 1, "off").nodes}
    assert [o.name for o in nodes["Qcur-1"].inputs] == ["blk.1.attn_qkv.weight", "attn_norm_2-1"]
    assert nodes["ffn_out-1"].inputs[0].name == "attn_norm-1"
    assert nodes["ffn_out-1"].attributes["activation"] == "gelu"


@pytest.mark.parametrize(("name", "source"), [(FILES[2], "l_out-0"), (FILES[3], "ffn_inp-0")])
def test_predictors_read_a_residual_before_any_norm(name: str, source: str, data: Path) -> None:
    layer = 1 if source == "l_out-0" else 0
    with open_gguf(data / f"{name}.gguf") as file:
        nodes = {node.name: node for node in architectures.build(load_model(file), 1, "predictor").nodes}
    assert nodes[f"mlp_pre_out-{layer}"].inputs[0].name == source


def test_learned_positions_bound_the_context(data: Path) -> None:
    with open_gguf(data / f"{FILES[3]}.gguf") as file:
        model = load_model(file)
        assert model.n_ctx_train == 2048
        with executor(file, "off", n_ctx=2048, n_batch=2) as it:
            it.run(IDS[:2], 2046)
        with pytest.raises(SettingError, match="n_ctx: 2049 .the model has learned 2048 positions"):
            executor(file, "off", n_ctx=2049)


def test_opt_without_an_epsilon_runs_with_0(data: Path) -> None:
    with open_gguf(data / f"{FILES[3]}.gguf") as file:
        assert load_model(file).norm_eps == 0
        file.metadata = {**file.metadata, "opt.attention.layer_norm_epsilon": 0.5}
        assert load_model(file).norm_eps == 0.5
