"""What a token takes in a mode, from the op records that it walks and the times of their pieces (`probes.py`).

    run + walk + sum over records (start + rows * seconds of a row)

A matrix's rows by their type and length; an FFN's gate rows that are listed, and the up and down rows of
neurons that fire; norms, rotations, attention and other vectors by their sizes. A matrix of few chunks
occupies few threads.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.graph.graph import Node, layer_of, weights_of
from hotcold.engine.host.records import Record
from hotcold.engine.measure.activity import Activity
from hotcold.engine.measure.probes import RELU, VECTORS, Probes, at_length
from hotcold.kernels.cpu import program

PRODUCTS = {program.MAT_VEC: ("w",), program.LOGITS: ("w",), program.GATED: ("w", "w1")}
EXPERT_PRODUCTS = (program.EXPERT_ROWS, program.EXPERT_LISTED)
SHARES = 0.25, 0.5, 1.0  # of the neurons that are computed, at which probes time their up and down rows
Found = tuple[Node, Record]


def touched_bytes(engine: Engine) -> int:
    """Of all weights that a token may read: any row of any expert, and any neuron."""
    nodes = [
        node for node in engine.executor.plan.decode.graph.nodes if node.op not in ("embed", "positions")
    ]
    weights = {(w.name, w.first_row): w.n_bytes for node in nodes for w in weights_of(node)}
    return sum(weights.values())


def token_seconds(engine: Engine, stats: Activity, probes: Probes, run: float) -> float:
    """The model's seconds of a token that lists and fires as the statistics say.

    Args:
        stats: empty where the FFN runs dense.
        run: seconds of a run whose walk is left out.
    """
    vectors: list[list[Record]] = [[]]
    seconds = run + probes.walk()
    for node, record in _records(engine):
        code = record["code"]
        if code in PRODUCTS:
            seconds += _product(record, PRODUCTS[code], record["n_rows"], probes)
        elif code in EXPERT_PRODUCTS:
            n_used = node.tensor("chosen").shape[1]
            seconds += _product(record, ("w",), n_used * record["n_rows"], probes)
        elif code == program.EXPERT_UP:
            n_firing = _numbers(engine, stats, node)[1]
            seconds += _product(record, ("w",), int(n_firing), probes)
        elif code in (program.SPARSE_FFN, program.EXPERT_PIECES):
            seconds += _neurons(engine, stats, node, record, probes)
        elif code in (program.DOWN_ROWS, program.EXPERT_DOWN):
            seconds += _down(engine, stats, node, record, probes)
        else:
            vectors[-1].append(_of_vectors(node, record))
            continue
        if vectors[-1]:
            vectors.append([])
    return seconds + probes.vectors([group for group in vectors if group])


def _records(engine: Engine) -> Iterator[Found]:
    for node, records in engine.executor.run_steps.lowered[1]:
        for record in records:
            yield node, record


def _of_vectors(node: Node, record: Record) -> Record:
    """The record itself, or an addition of as many numbers as a token's experts have."""
    if record["code"] in VECTORS and not record.get("groups"):
        return record
    n_used = node.tensor("chosen").shape[1] if node.op == "expert_ffn" else 1
    return _add(max(n_used * record.get("k", 0), 16))


def _add(k: int) -> Record:
    some = dict.fromkeys(("x", "z", "y"), 1)  # addresses, which probes put in their own place
    return {
        "code": program.ADD,
        "chunks": 1,
        "k": k,
        "x_stride": 4 * k,
        "z_stride": 4 * k,
        "y_stride": 4 * k,
        **some,
    }


def _product(record: Record, names: tuple[str, ...], n_rows: int, probes: Probes) -> float:
    """A matrix, or two in one record: the start once."""
    chunks, n = record["chunks"], probes.n_threads

    def figures(type_id: int, k: int) -> NDArray[np.float64]:
        rows = probes.rows(type_id, k)
        return np.array(rows.of_one if chunks == 1 else rows.of_all)

    found = [at_length(record["k"], partial(figures, record[f"{name}_type"])) for name in names]
    uneven = 1.0 if chunks == 1 else -(-chunks // n) * n / chunks
    return float(found[0][0] + n_rows * uneven * sum(each[1] for each in found))


def _numbers(engine: Engine, stats: Activity, node: Node) -> tuple[float, float]:
    """Neurons of a layer's FFN that a token lists, and that fire; all of them where nothing is skipped."""
    if stats.listed and node.op != "dense_gated_ffn":
        layer = layer_of(node)
        return stats.listed[layer], stats.firing[layer]
    experts = engine.model.experts
    n = engine.model.n_ff if experts is None else experts.n_used * experts.n_ff
    return n, n


def _neurons(engine: Engine, stats: Activity, node: Node, record: Record, probes: Probes) -> float:
    n_listed, n_firing = _numbers(engine, stats, node)
    if not record.get("skip"):
        n_firing = n_listed
    names = [name for name in ("w", "w1", "w2") if record.get(f"{name}_stride")]
    types = tuple(record[f"{name}_type"] for name in names)
    activation, pieces = record.get("activation", RELU), record["chunks"]

    def figures(k: int) -> NDArray[np.float64]:
        each = probes.neurons(types, k, activation, pieces)
        return np.array([*each.starts, each.gate, each.listed_gate, *each.others])

    start, of_firing, gate, listed_gate, *others = at_length(record["k"], figures)
    n_all = _numbers(engine, Activity((), (), 0.0), node)[0]
    of_gate = gate if n_listed > 0.9 * n_all else listed_gate
    other = np.interp(n_firing / n_all, SHARES, others)
    start += of_firing * (n_firing > 0)
    return float(start + n_listed * of_gate + n_firing * other)


def _down(engine: Engine, stats: Activity, node: Node, record: Record, probes: Probes) -> float:
    n_firing = _numbers(engine, stats, node)[1]
    start, row = at_length(record["k"], lambda k: np.array(probes.down(record["w_type"], k)))
    return float(start + n_firing * row)
