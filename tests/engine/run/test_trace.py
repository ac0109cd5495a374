"""HOTCOLD_DEBUG: what runs node by node gives the same bits, and is printed."""

import numpy as np
import pytest

import hotcold
from hotcold.engine import settings
from hotcold.engine.run.trace import weight_bytes

IDS = [1, 270, 265, 300]


def logits(level: str, monkeypatch: pytest.MonkeyPatch, sparsity: str = "auto") -> np.ndarray:
    monkeypatch.setenv("HOTCOLD_DEBUG", level)
    with hotcold.load(n_ctx=16, n_batch=3, threads=2, sparsity=sparsity) as engine:
        return engine.logits(IDS)


@pytest.mark.parametrize("sparsity", ["predictor", "exact", "off"])
def test_a_trace_changes_no_bit(
    sparsity: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = logits("0", monkeypatch, sparsity)
    assert capsys.readouterr().err == ""
    assert np.array_equal(plain, logits("2", monkeypatch, sparsity))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split()[:4] == ["0", "cpu", "inp_embd", "embed"]
    assert sum(" logits " in line for line in lines) == 2  # a batch of three, then one token
    assert any("ffn_out-5" in line and "GB/s" in line for line in lines)


def test_level_3_prints_the_graphs_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logits("3", monkeypatch)
    text = capsys.readouterr().err
    assert "graph of 1 token\n" in text and "graph of 3 tokens\n" in text


@pytest.mark.parametrize(
    ("text", "level"), [("", 0), ("0", 0), ("1", 1), ("2", 2), ("3", 3), ("yes", 1), ("-1", 1), ("9" * 9, 1)]
)
def test_levels(text: str, level: int) -> None:
    assert settings.debug_level({"HOTCOLD_DEBUG": text}) == level


@pytest.mark.parametrize(("text", "wanted"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_the_name_that_users_of_powerinfer_know(text: str, wanted: bool) -> None:
    assert settings.offload_debug({"LLAMA_OFFLOAD_DEBUG": text}) is wanted
    assert not settings.offload_debug({})


def test_bytes_of_a_sparse_node_are_those_of_the_rows_that_it_read() -> None:
    with hotcold.load(n_ctx=16, n_batch=3, threads=1) as engine:
        node = next(n for n in engine.executor.plan.decode.graph.nodes if n.op == "sparse_gated_ffn")
        row = engine.model.layers[0].up.n_bytes // engine.model.n_ff
    counted = np.array([[10, 4], [0, 0]])
    assert weight_bytes(node, 1, counted) == (10 + 2 * 4) * row
    assert weight_bytes(node, 3, counted) == 0
