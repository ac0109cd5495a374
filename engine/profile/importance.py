"""How much each column of a model's matrices matters: the sums of squares of its input, while a corpus passes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.graph.graph import Node, ffn_matrices, reading_matrices
from hotcold.engine.model.model import Weight
from hotcold.engine.profile.corpus import Text
from hotcold.engine.profile.firing import Counted
from hotcold.engine.profile.passing import (
    HIDDEN,
    heard,
    hidden_of_pairs,
    hidden_values,
    intermediate,
    run_chunk,
)
from hotcold.engine.profile.profile import Progress
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken
from hotcold.errors import FileError
from hotcold.gguf_io.down_names import by_output
from hotcold.gguf_io.imatrix import Importance


def measure_importance(
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    texts: Sequence[Text],
    progress: Progress | None = None,
) -> Importance:
    """Let the chunks pass and sum up the squares of what each layer's matrices read.

    The down projection goes by llama.cpp's name, however the file has it; the head has no sums, as there. Each
    expert of a mixture has sums of the tokens that chose it.

    Raises:
        SettingError: n_batch below 4, or an engine on a device.
        FileError: an input is NaN or infinite.
    """
    executor, model, started, done = engine.executor, engine.model, time.perf_counter(), 0
    total = sum(chunk.size for chunk in chunks)
    squares = _Squares(executor)
    engine.take_turn()
    with heard(executor, squares.hear):
        for chunk in chunks:
            run_chunk(executor, chunk, lambda: None)
            done += chunk.size
            if progress is not None:
                progress(done, total, done / max(time.perf_counter() - started, 1e-9))
    for name, sums in squares.sums.items():
        if not np.isfinite(sums).all():
            bound = "what it reads is NaN or infinite"
            raise FileError(
                f"{engine.file.path.name}: input of {name}", "no number", bound, "--check-tensors"
            )
    names = [text.name for text in texts]
    found = squares.sums, squares.counts
    return Importance(model.architecture, *found, total, len(chunks), engine.n_ctx, names)


@dataclass
class _Input:
    """What some matrices of a layer read alike: numbers a token, and their names."""

    width: int
    names: set[str] = field(default_factory=set)


class _Squares:
    """Adds up the squares of what matrices read."""

    def __init__(self, executor: Executor) -> None:
        self._executor, self.sums, self.counts = executor, dict[str, Counted](), dict[str, Counted]()
        self._inputs: dict[str, dict[str, _Input]] = {}  # by the first node that reads it, and by its name
        self._down: dict[str, str] = {}
        first: dict[str, str] = {}
        for node in (placed.node for placed in executor.plan.batch.placed.nodes):
            if node.layer is None or not reading_matrices(node) or node.op == "expert_ffn":
                continue
            x = node.tensor("x")
            reader = self._inputs.setdefault(first.setdefault(x.name, node.name), {})
            reader.setdefault(x.name, _Input(x.shape[1])).names.update(w.name for w in reading_matrices(node))
            if node.op in HIDDEN:
                self._down[node.name] = by_output(node.weight("down").name)

    def hear(self, taken: Taken) -> None:
        """A node has run: what it read is still there."""
        for name, read in self._inputs.get(taken.node.name, {}).items():
            self._add_all(intermediate(self._executor, name, read.width), read.names)
        if (down := self._down.get(taken.node.name)) is not None:
            self._add_all(hidden_values(self._executor, taken.node), {down})
        if taken.node.op == "expert_ffn":
            self._hear_experts(taken.node)

    def _hear_experts(self, node: Node) -> None:
        """A mixture's node has run."""
        x, gate, up, down = node.tensor("x"), *ffn_matrices(node)
        values = intermediate(self._executor, x.name, x.shape[1])
        experts, tokens, hidden = hidden_of_pairs(self._executor, node)
        counts = np.bincount(experts, minlength=gate.ne[2]).astype(np.float64)
        for of_rows, matrices in ((values[tokens], (gate, up)), (hidden, (down,))):
            sums = np.zeros((len(counts), of_rows.shape[1]))
            first = np.flatnonzero(np.diff(experts, prepend=-1))
            sums[experts[first]] = np.add.reduceat(np.square(of_rows, dtype=np.float64), first)
            for weight in matrices:
                self._add_experts(weight, sums, counts)

    def _add_experts(self, weight: Weight, sums: Counted, counts: Counted) -> None:
        """Note sums [n_expert, columns] of all experts' matrices; an old file has a tensor for each."""
        if not weight.stacked:
            self._add(by_output(weight.name), sums, counts)
        for e, name in enumerate(weight.stacked):
            self._add(name, sums[e : e + 1], counts[e : e + 1])

    def _add_all(self, values: NDArray[np.float32], names: set[str]) -> None:
        squares: Counted = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        for name in names:
            self._add(name, squares[None], np.array([len(values)], np.float64))

    def _add(self, name: str, sums: Counted, counts: Counted) -> None:
        self.sums[name] = self.sums.get(name, 0) + sums
        self.counts[name] = self.counts.get(name, 0) + counts
