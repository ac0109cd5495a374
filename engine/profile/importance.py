"""How much each column of a model's matrices matters: the sums of squares of its input, while a corpus passes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.graph.graph import reading_matrices
from hotcold.engine.profile.corpus import Text
from hotcold.engine.profile.firing import Counted
from hotcold.engine.profile.passing import HIDDEN, heard, hidden_values, intermediate, run_chunk
from hotcold.engine.profile.profile import Progress
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io.imatrix import Importance


def measure_importance(
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    texts: Sequence[Text],
    progress: Progress | None = None,
) -> Importance:
    """Let the chunks pass and sum up the squares of what each layer's matrices read.

    The down projection goes by llama.cpp's name, however the file has it; the head has no sums, as there.

    Raises:
        SettingError: n_batch below 4, an engine on a device, or a mixture of experts.
        FileError: an input is NaN or infinite.
    """
    executor, model, started, done = engine.executor, engine.model, time.perf_counter(), 0
    total = sum(chunk.size for chunk in chunks)
    if model.experts is not None:
        bound = "each sees tokens of its own, which are not summed up"
        raise SettingError("model", "a mixture of experts", bound, "convert it without --imatrix")
    squares = _Squares(executor)
    engine.turn += 1
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
    return Importance(model.architecture, squares.sums, total, len(chunks), engine.n_ctx, names)


@dataclass
class _Input:
    """What some matrices of a layer read alike: numbers a token, and their names."""

    width: int
    names: set[str] = field(default_factory=set)


class _Squares:
    """Adds up the squares of what matrices read."""

    def __init__(self, executor: Executor) -> None:
        self._executor, self.sums = executor, dict[str, Counted]()
        self._inputs: dict[str, dict[str, _Input]] = {}  # by the first node that reads it, and by its name
        self._down: dict[str, str] = {}
        first: dict[str, str] = {}
        for node in (placed.node for placed in executor.plan.batch.placed.nodes):
            if node.layer is None or not reading_matrices(node):
                continue
            x = node.tensor("x")
            reader = self._inputs.setdefault(first.setdefault(x.name, node.name), {})
            reader.setdefault(x.name, _Input(x.shape[1])).names.update(w.name for w in reading_matrices(node))
            if node.op in HIDDEN:
                self._down[node.name] = node.weight("down").name.replace("ffn_down_t", "ffn_down")

    def hear(self, taken: Taken) -> None:
        """A node has run: what it read is still there."""
        for name, read in self._inputs.get(taken.node.name, {}).items():
            self._add(intermediate(self._executor, name, read.width), read.names)
        if (down := self._down.get(taken.node.name)) is not None:
            self._add(hidden_values(self._executor, taken.node), {down})

    def _add(self, values: NDArray[np.float32], names: set[str]) -> None:
        squares: Counted = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        for name in names:
            self.sums[name] = self.sums[name] + squares if name in self.sums else squares
