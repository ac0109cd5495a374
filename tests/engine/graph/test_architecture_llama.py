"""The graph of llama: its formulas, its modes, its order."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hotcold.engine.graph import architectures
from hotcold.engine.graph.graph import Graph, Node, Tensor, check
from hotcold.engine.graph.passes import run_passes
from hotcold.engine.graph.placed import CPU, Sides
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.plan.plan import GraphPlan
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import GGUFFile, open_gguf


@pytest.fixture(scope="module")
def dense(data: Path) -> Iterator[Model]:
    """SiLU, ffn_down, no predictors."""
    with open_gguf(data / "llamacpp" / "llama.f32.gguf") as file:
        yield load_model(file)


@pytest.fixture(scope="module")
def sparse_file(data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / "powerinfer" / "llama-f16.powerinfer.gguf") as file:
        yield file


@pytest.fixture(scope="module")
def sparse(sparse_file: GGUFFile) -> Model:
    """ReLU, ffn_down_t, predictors."""
    return load_model(sparse_file)


def nodes_of(graph: Graph) -> dict[str, Node]:
    return {node.name: node for node in graph.nodes}


def names(node: Node) -> list[str]:
    return [operand.name for operand in node.inputs]


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


ATTENTION = ["rms_norm", "mul_mat", "mul_mat", "mul_mat", "rope", "rope", "kv_store", "attention", "mul_mat"]


def test_the_order_of_a_dense_model(dense: Model) -> None:
    layer = [*ATTENTION, "add", "rms_norm", "dense_gated_ffn", "add"]
    wanted = ["embed", *layer, *layer, "rms_norm", "logits"]
    assert ops(architectures.build(dense, 1, "off")) == wanted


@pytest.mark.parametrize(
    ("sparsity", "ffn"),
    [
        ("off", ["rms_norm", "dense_gated_ffn"]),
        ("exact", ["rms_norm", "sparse_gated_ffn"]),
        ("predictor", ["predictor", "rms_norm", "sparse_gated_ffn"]),
    ],
)
def test_the_order_of_a_sparse_model(sparsity: str, ffn: list[str], sparse: Model) -> None:
    layer = [*ATTENTION, "add", *ffn, "add"]
    wanted = ["embed", *layer, *layer, "rms_norm", "logits"]
    assert ops(architectures.build(sparse, 1, sparsity)) == wanted


@pytest.mark.parametrize("n_tokens", [1, 7])
@pytest.mark.parametrize("sparsity", ["off", "exact", "predictor"])
def test_it_passes_the_check_and_is_frozen(n_tokens: int, sparsity: str, sparse: Model) -> None:
    graph = architectures.build(sparse, n_tokens, sparsity)
    check(graph)
    assert graph.frozen
    assert {node.output.shape[0] for node in graph.nodes} == {n_tokens}


def test_residuals_join_what_they_should(sparse: Model) -> None:
    nodes = nodes_of(architectures.build(sparse, 1, "off"))
    assert names(nodes["attn_norm-0"]) == ["inp_embd", "blk.0.attn_norm.weight"]
    assert names(nodes["ffn_inp-0"]) == ["attn_out-0", "inp_embd"]
    assert names(nodes["ffn_norm-0"]) == ["ffn_inp-0", "blk.0.ffn_norm.weight"]
    assert names(nodes["l_out-0"]) == ["ffn_out-0", "ffn_inp-0"]
    assert names(nodes["attn_norm-1"]) == ["l_out-0", "blk.1.attn_norm.weight"]
    assert names(nodes["ffn_inp-1"]) == ["attn_out-1", "l_out-0"]
    assert names(nodes["result_norm"]) == ["l_out-1", "output_norm.weight"]
    assert names(nodes["result_output"]) == ["output.weight", "result_norm"]


def test_the_predictor_reads_the_residual_before_its_norm(sparse: Model) -> None:
    nodes = nodes_of(architectures.build(sparse, 1, "predictor"))
    for i in (0, 1):
        predictor = nodes[f"mlp_pre_out-{i}"]
        assert names(predictor) == [f"ffn_inp-{i}", f"blk.{i}.fc1.weight", f"blk.{i}.fc2.weight"]
        assert predictor.output == Tensor(f"mlp_pre_out-{i}", (1, 1024), "mask", layer=i)
        assert predictor.attributes["threshold"] == 0.5
        ffn = nodes[f"ffn_out-{i}"]
        assert names(ffn)[:2] == [f"ffn_norm-{i}", f"mlp_pre_out-{i}"]
        weights = [f"blk.{i}.{role}.weight" for role in ("ffn_gate", "ffn_up", "ffn_down_t")]
        assert names(ffn)[2:] == weights


def test_exact_has_no_mask_and_off_runs_the_transposed_down(sparse: Model) -> None:
    exact = nodes_of(architectures.build(sparse, 1, "exact"))["ffn_out-1"]
    off = nodes_of(architectures.build(sparse, 1, "off"))["ffn_out-1"]
    weights = [f"blk.1.{role}.weight" for role in ("ffn_gate", "ffn_up", "ffn_down_t")]
    assert names(exact) == names(off) == ["ffn_norm-1", *weights]
    assert exact.attributes["activation"] == "relu"
    assert dict(off.attributes) == {"activation": "relu", "transposed": True}


def test_a_dense_ffn_has_the_plain_down(dense: Model) -> None:
    node = nodes_of(architectures.build(dense, 1, "off"))["ffn_out-0"]
    assert names(node)[-1] == "blk.0.ffn_down.weight"
    assert dict(node.attributes) == {"activation": "silu", "transposed": False}


def test_queries_and_keys_are_rotated_and_values_are_not(dense: Model) -> None:
    nodes = nodes_of(architectures.build(dense, 3, "off"))
    assert names(nodes["kv_store-0"]) == ["Krope-0", "Vcur-0"]
    assert names(nodes["kqv_out-0"]) == ["Qrope-0", "kv_store-0"]
    rotation = {"head_dim": 16, "n_rot": 16, "interleaved": True, "table": 0}
    assert dict(nodes["Qrope-0"].attributes) == {"n_head": 8, **rotation}
    assert dict(nodes["Krope-0"].attributes) == {"n_head": 2, **rotation}
    heads = {"n_head": 8, "n_head_kv": 2, "head_dim": 16}
    assert dict(nodes["kqv_out-1"].attributes) == {**heads, "scale": 0.25, "window": 0}
    assert nodes["kqv_out-1"].layer == nodes["kv_store-1"].layer == 1
    assert nodes["Kcur-0"].output.shape == (3, 32)
    assert nodes["kqv_out-0"].output.shape == (3, 128)


def test_rope_freqs_are_an_operand(recorded: Callable[[str], Path]) -> None:
    with open_gguf(recorded("llamacpp/llama.ropefreqs.f16")) as file:
        nodes = nodes_of(architectures.build(load_model(file), 1, "off"))
    assert names(nodes["Qrope-1"]) == ["Qcur-1", "rope_freqs.weight"]
    assert names(nodes["Krope-1"]) == ["Kcur-1", "rope_freqs.weight"]


def test_a_tied_head_is_token_embd(data: Path) -> None:
    with open_gguf(data / "llamacpp" / "llama.ropelinear.q8_0.gguf") as file:
        graph = architectures.build(load_model(file), 1, "off")
    assert names(graph.nodes[-1]) == ["token_embd.weight", "result_norm"]


def test_norms_have_the_models_epsilon(dense: Model) -> None:
    graph = architectures.build(dataclasses.replace(dense, norm_eps=0.25), 1, "off")
    norms = [node.attributes["eps"] for node in graph.nodes if node.op == "rms_norm"]
    assert norms == [0.25] * 5


@pytest.mark.parametrize("sparsity", ["off", "exact", "predictor"])
def test_every_weight_of_the_mode_is_used_once(sparsity: str, sparse: Model) -> None:
    graph = architectures.build(sparse, 1, sparsity)
    used = [operand for node in graph.nodes for operand in node.inputs if isinstance(operand, Weight)]
    roles = {field.name for field in dataclasses.fields(Layer)} - {"ffn_down"}
    roles -= set() if sparsity == "predictor" else {"fc1", "fc2"}
    wanted = [weight for layer in sparse.layers for role in roles if (weight := getattr(layer, role))]
    wanted += [sparse.token_embd, sparse.output_norm, sparse.output]
    assert sorted(weight.name for weight in used) == sorted(weight.name for weight in wanted)


def test_it_prints_within_a_hundred_columns(sparse: Model) -> None:
    lines = str(architectures.build(sparse, 512, "predictor")).splitlines()
    assert lines[0] == "graph of 512 tokens"
    assert lines[14].endswith("128 sparse_gated_ffn ffn_norm-0, mlp_pre_out-0, ffn_gate, ffn_up, ffn_down_t")
    assert max(map(len, lines)) <= 100


def test_a_layer_more_costs_no_arena(sparse: Model) -> None:
    """Intermediates of a layer take the bytes of the one before."""
    many = dataclasses.replace(sparse, n_layer=12, layers=sparse.layers * 6)
    arenas = [
        run_passes(architectures.build(model, 32, "predictor"), Sides(kv=(CPU,) * model.n_layer))[1][CPU]
        for model in (sparse, many)
    ]
    assert arenas[0].n_bytes == arenas[1].n_bytes


def test_an_unknown_architecture(dense: Model) -> None:
    with pytest.raises(FileError, match="architecture of the model: mamba .known: llama"):
        architectures.build(dataclasses.replace(dense, architecture="mamba"), 1, "off")


def test_sparsities_that_the_model_does_not_allow(dense: Model, sparse: Model) -> None:
    """Skipping neurons of a SiLU model would change its answers, not only its speed."""
    plain = dataclasses.replace(sparse, has_predictors=False)
    down = tuple(dataclasses.replace(layer, ffn_down_t=None) for layer in sparse.layers)
    cases = [
        (sparse, "auto", "known: off, exact, predictor"),
        (dense, "exact", "silu has no exact zeros"),
        (dataclasses.replace(sparse, ffn_activation="silu"), "predictor", "silu has no exact zeros"),
        (plain, "predictor", "no predictors"),
        (dataclasses.replace(sparse, layers=down), "exact", "no ffn_down_t"),
    ]
    for model, sparsity, bound in cases:
        with pytest.raises(SettingError, match=f"sparsity of a graph: {sparsity} .*{bound}"):
            architectures.build(model, 1, sparsity)


def test_the_executor_runs_what_it_is_given(sparse_file: GGUFFile, sparse: Model) -> None:
    """A graph with another operand for the predictor gives other logits: the norm would be wrong."""
    whole = architectures.build(sparse, 1, "predictor")
    changed = Graph(1)
    nodes = nodes_of(whole)
    for node in whole.nodes:
        if node.op == "predictor":
            i = node.name.rpartition("-")[2]
            changed.nodes = (*changed.nodes, nodes[f"ffn_norm-{i}"])
            inputs = (nodes[f"ffn_norm-{i}"].output, *node.inputs[1:])
            changed.nodes = (*changed.nodes, dataclasses.replace(node, inputs=inputs))
        elif not node.name.startswith("ffn_norm"):
            changed.nodes = (*changed.nodes, node)
    logits, how = np.zeros((2, 1, sparse.n_vocab), np.float32), Wanted("predictor", 8, 1)
    for out, graph in zip(logits, (whole, changed), strict=True):
        passed = run_passes(graph, Sides(kv=(CPU,) * sparse.n_layer))
        plan = dataclasses.replace(plan_for_cpu(sparse, how), decode=GraphPlan(graph, *passed))
        with Executor(plan, sparse_file, 1) as executor:
            executor.run(np.array([1], np.int32), 0, out)
    difference = np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()
    assert difference > 0.01
