"""What predictors are trained on: for each token and layer, the residual before the FFN's norm, and what fired.

It is written to a folder as the corpus passes, since all layers' do not fit memory: float16 [n_tokens, n_embd]
and bits [n_tokens, n_ff / 8] of each layer, as .npy files that are mapped.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.worker import ModelWorkers, WorkersModel, one_at_a_time, opened
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
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    folder: Path,
    progress: Progress | None = None,
    by: ModelWorkers | None = None,
    begun: int = 0,
    keep: Callable[[int], None] | None = None,
) -> int:
    """Let a corpus pass and write what each layer sees; how many tokens these are.

    Args:
        by: lets the chunks pass, in place of this engine.
        begun: chunks that are in the folder.
        keep: takes how many are, at the end or when this is interrupted or fails.

    Raises:
        SettingError, DoesNotFitError: as `check_corpus`. DoesNotFitError: a full disk.
    """
    model, n_tokens = engine.model, sum(chunk.size for chunk in chunks)
    check_corpus(engine.executor, n_tokens)
    files = [path for layer in range(model.n_layer) for path in _files(folder, layer)]
    if not all(path.exists() for path in files):
        begun = 0
    if not begun:
        for path in files:
            path.unlink(missing_ok=True)
    needed = 0 if begun else needed_bytes(model, n_tokens)
    free = shutil.disk_usage(folder).free
    if needed > free:
        bound = f"{free / 1e9:.1f} GB are free in {folder}"
        raise DoesNotFitError(
            "training data", f"{needed / 1e9:.1f} GB", bound, "give less text, or another -o"
        )
    rows = _Rows(model, folder, n_tokens, sum(chunk.size for chunk in chunks[:begun]))
    engine.turn += 1
    seen: Iterator[ChunkSamples]
    if by is None:
        seen = map(_Collector(engine).collect, chunks[begun:])
    else:
        seen = by.in_order(partial(collect_by_worker, by.model), chunks[begun:])
    try:
        for of_chunk in seen:
            rows.write(of_chunk)
            begun += 1
            if progress is not None:
                progress(rows.at, n_tokens)
    finally:
        rows.flush()
        if keep is not None:
            keep(begun)
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


@dataclass(frozen=True)
class ChunkSamples:
    """Of a chunk: float16 x [n_layer, n_tokens, n_embd], and what fired, uint8 [n_layer, n_tokens, n_ff / 8]."""

    x: NDArray[np.float16]
    bits: NDArray[np.uint8]


def collect_by_worker(model: WorkersModel, ids: NDArray[np.int32]) -> ChunkSamples:
    """What a worker does; errors: see `opened`."""
    with one_at_a_time:
        return _Collector(opened(model)).collect(ids)


class _Collector:
    """Sees what passes through each layer of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._executor = engine.executor
        graph = self._executor.plan.batch
        self._inputs = _predictors_inputs([placed.node for placed in graph.placed.nodes])

    def collect(self, ids: NDArray[np.int32]) -> ChunkSamples:
        """Let a chunk pass."""
        executor, model, at = self._executor, self._executor.model, 0
        x = np.empty((model.n_layer, ids.size, model.n_embd), np.float16)
        bits = np.empty((model.n_layer, ids.size, -(-model.n_ff // 8)), np.uint8)

        def hear(taken: Taken) -> None:
            node, rows = taken.node, slice(at, at + n_passing(executor))
            if (layer := self._inputs.get(node.name)) is not None:
                values = intermediate(executor, node.tensor("x").name, model.n_embd)
                x[layer, rows] = np.clip(values, -LARGEST, LARGEST)
            if node.op in HIDDEN:
                fired = hidden_values(executor, node) != 0
                bits[layer_of(node), rows] = np.packbits(fired, axis=1, bitorder="little")

        def advance() -> None:
            nonlocal at
            at += n_passing(executor)

        with heard(executor, hear):
            run_chunk(executor, ids, advance)
        return ChunkSamples(x, bits)


class _Rows:
    """The files of all layers."""

    def __init__(self, model: Model, folder: Path, n_tokens: int, at: int) -> None:
        self.at, mode = at, "r+" if at else "w+"
        self._x, self._bits = [], []
        for layer in range(model.n_layer):
            x, bits = _files(folder, layer)
            self._x.append(open_memmap(x, mode, np.float16, (n_tokens, model.n_embd)))
            self._bits.append(open_memmap(bits, mode, np.uint8, (n_tokens, -(-model.n_ff // 8))))

    def write(self, of: ChunkSamples) -> None:
        """The next chunk's."""
        rows = slice(self.at, self.at + of.x.shape[1])
        for layer, (x, bits) in enumerate(zip(self._x, self._bits, strict=True)):
            x[rows], bits[rows] = of.x[layer], of.bits[layer]
        self.at = rows.stop

    def flush(self) -> None:
        for array in (*self._x, *self._bits):
            array.flush()


def _predictors_inputs(nodes: Sequence[Node]) -> dict[str, int]:
    """The norms before the FFNs, by name, with their layers: what they read is what predictors read."""
    makers = {node.output.name: node for node in nodes}
    return {makers[node.tensor("x").name].name: layer_of(node) for node in nodes if node.op in HIDDEN}
