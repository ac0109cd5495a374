"""What predictors are trained on: for each token and layer, the residual before the FFN's norm, and what fired.

It is written to a folder as the corpus passes, since all layers' do not fit memory: float16 [n_tokens, n_embd]
and bits [n_tokens, n_ff / 8] of each layer, as .npy files that are mapped.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.graph.graph import Node, layer_of
from hotcold.engine.model.model import Model
from hotcold.engine.profile.passing import (
    HIDDEN,
    check_executor,
    heard,
    hidden_values,
    intermediate,
    n_passing,
    run_chunk,
)
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken
from hotcold.errors import DoesNotFitError, SettingError

FEWEST_TOKENS = 4096
LARGEST = float(np.finfo(np.float16).max)

Progress = Callable[[int, int], None]
"""Hears of tokens done and in all."""


@dataclass(frozen=True)
class Samples:
    """Of one layer: float16 x [n_tokens, n_embd], and which neurons fired as bits, uint8 [n_tokens, n_ff / 8]."""

    x: NDArray[np.float16]
    bits: NDArray[np.uint8]
    n_ff: int

    def batch(self, which: NDArray[np.int64] | slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Some tokens: x by its root mean square, on which no predictor's sign depends, and what fired."""
        x = self.x[which].astype(np.float32)
        x /= np.sqrt((x * x).mean(1, keepdims=True) + 1e-12)
        fired = np.unpackbits(self.bits[which], axis=1, count=self.n_ff, bitorder="little").view(np.bool_)
        return x, fired


def needed_bytes(model: Model, n_tokens: int) -> int:
    """Of the folder."""
    return model.n_layer * n_tokens * (2 * model.n_embd + -(-model.n_ff // 8))


def _files(folder: Path, layer: int) -> tuple[Path, Path]:
    return folder / f"inputs_{layer}.npy", folder / f"fired_{layer}.npy"


def open_samples(folder: Path, layer: int, n_ff: int) -> Samples:
    """What `collect` wrote of a layer, mapped."""
    x, bits = (np.load(path, mmap_mode="r") for path in _files(folder, layer))
    return Samples(x, bits, n_ff)


def collect(
    engine: Engine, chunks: Sequence[NDArray[np.int32]], folder: Path, progress: Progress | None = None
) -> int:
    """Let a corpus pass and write what each layer sees; how many tokens these are.

    Raises:
        SettingError, DoesNotFitError: as `check_corpus`. DoesNotFitError: a full disk.
    """
    model, n_tokens = engine.model, sum(chunk.size for chunk in chunks)
    check_corpus(engine.executor, n_tokens)
    for layer in range(model.n_layer):  # of a collection that was interrupted, which begins anew
        for path in _files(folder, layer):
            path.unlink(missing_ok=True)
    needed, free = needed_bytes(model, n_tokens), shutil.disk_usage(folder).free
    if needed > free:
        bound = f"{free / 1e9:.1f} GB are free in {folder}"
        raise DoesNotFitError(
            "training data", f"{needed / 1e9:.1f} GB", bound, "give less text, or another -o"
        )
    seen = _Seen(engine.executor, folder, n_tokens)
    engine.turn += 1
    with heard(engine.executor, seen.hear):
        for chunk in chunks:
            run_chunk(engine.executor, chunk, seen.advance)
            if progress is not None:
                progress(seen.at, n_tokens)
    seen.flush()
    return n_tokens


def check_corpus(executor: Executor, n_tokens: int) -> None:
    """Refuse what nothing can be learned from.

    Raises:
        SettingError: a mixture, a model whose neurons are never idle, or what `check_executor` refuses.
        DoesNotFitError: too few tokens.
    """
    model = executor.model
    check_executor(executor)
    if model.experts is not None:
        raise SettingError(
            "model", "its FFN is experts", "a router lists them, no predictor", "use another model"
        )
    if model.ffn_activation != "relu":
        name = model.ffn_activation.upper()
        raise SettingError(
            "model", f"its FFN is {name}", "only ReLU has idle neurons to foresee", "use another model"
        )
    if n_tokens < FEWEST_TOKENS:
        raise DoesNotFitError("texts", f"{n_tokens} ids", f"at least {FEWEST_TOKENS}", "give more text")


class _Seen:
    """Writes what passes through each layer."""

    def __init__(self, executor: Executor, folder: Path, n_tokens: int) -> None:
        model = executor.model
        self._executor, self.at = executor, 0
        graph = executor.plan.batch
        self._inputs = _predictors_inputs([placed.node for placed in graph.placed.nodes])
        self._x, self._bits = [], []
        for layer in range(model.n_layer):
            x, bits = _files(folder, layer)
            self._x.append(open_memmap(x, "w+", np.float16, (n_tokens, model.n_embd)))
            self._bits.append(open_memmap(bits, "w+", np.uint8, (n_tokens, -(-model.n_ff // 8))))

    def hear(self, taken: Taken) -> None:
        node, executor = taken.node, self._executor
        rows = slice(self.at, self.at + n_passing(executor))
        if (layer := self._inputs.get(node.name)) is not None:
            x = intermediate(executor, node.tensor("x").name, executor.model.n_embd)
            self._x[layer][rows] = np.clip(x, -LARGEST, LARGEST)
        if node.op in HIDDEN:
            fired = hidden_values(executor, node) != 0
            self._bits[layer_of(node)][rows] = np.packbits(fired, axis=1, bitorder="little")

    def advance(self) -> None:
        """A batch has passed."""
        self.at += n_passing(self._executor)

    def flush(self) -> None:
        for array in (*self._x, *self._bits):
            array.flush()


def _predictors_inputs(nodes: Sequence[Node]) -> dict[str, int]:
    """The norms before the FFNs, by name, with their layers: what they read is what predictors read."""
    makers = {node.output.name: node for node in nodes}
    return {makers[node.tensor("x").name].name: layer_of(node) for node in nodes if node.op in HIDDEN}
