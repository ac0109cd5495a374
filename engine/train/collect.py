"""What predictors are trained on: for each token and layer, the residual before the FFN's norm, and what fired.

It is written to a folder as the corpus passes, since all layers' do not fit memory: float16 [n_tokens, n_embd]
and bits [n_tokens, n_ff / 8] of each layer, as .npy files that are mapped.
"""

import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO, FileIO
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib import format as lib_format
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.worker import ModelWorkers, WorkersModel, one_at_a_time, opened
from hotcold.engine.graph.graph import Node, layer_of
from hotcold.engine.model.model import Model
from hotcold.engine.model.sparsity import spoken
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
from hotcold.engine.train.samples import files_of
from hotcold.errors import DoesNotFitError, SettingError
from hotcold.gguf_io.residency import advise, ranges_of
from hotcold.whole_file import write_error

FEWEST_TOKENS = 4096
LARGEST = float(np.finfo(np.float16).max)

Progress = Callable[[int, int], None]
"""Hears of tokens done and in all."""


def needed_bytes(model: Model, n_tokens: int) -> int:
    """Of the folder."""
    return model.n_layer * n_tokens * (2 * model.n_embd + -(-model.n_ff // 8))


def collect(
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    folder: Path,
    progress: Progress | None = None,
    by: ModelWorkers | None = None,
    begun: int = 0,
    keep: Callable[[int], None] | None = None,
    gives_back: bool = False,
) -> int:
    """Let a corpus pass and write what each layer sees; how many tokens these are.

    Args:
        by: lets the chunks pass, in place of this engine.
        begun: chunks that are in the folder.
        keep: takes how many are, at the end or when this is interrupted or fails.
        gives_back: whether pages of the model's file leave this process's memory layer by layer.

    Raises:
        SettingError, DoesNotFitError: as `check_corpus`. DoesNotFitError: a full disk.
    """
    model, n_tokens = engine.model, sum(chunk.size for chunk in chunks)
    check_corpus(engine.executor, n_tokens)
    files = [path for layer in range(model.n_layer) for path in files_of(folder, layer)]
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
    engine.take_turn()
    try:
        _collect(engine, chunks, folder, begun, progress, by, keep, gives_back)
    except OSError as error:
        kept = "what has passed is kept"
        raise write_error(folder, error, kept, "-o") from error
    return n_tokens


def _collect(
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    folder: Path,
    begun: int,
    progress: Progress | None,
    by: ModelWorkers | None,
    keep: Callable[[int], None] | None,
    gives_back: bool,
) -> None:
    """The chunks from `begun` on."""
    n_tokens = sum(chunk.size for chunk in chunks)
    rows = _Rows(engine.model, folder, n_tokens, sum(chunk.size for chunk in chunks[:begun]))

    def written(ids: NDArray[np.int32]) -> int:
        collector.collect(ids, rows)
        return ids.size

    def handed_over(found: ChunkSamples) -> int:
        rows.write(found)
        return int(found.x.shape[1])

    collector = _Collector(engine, gives_back)
    seen: Iterator[int]
    if by is None:
        seen = map(written, chunks[begun:])
    else:
        seen = map(handed_over, by.in_order(partial(collect_by_worker, by.model, gives_back), chunks[begun:]))
    try:
        for n in seen:
            rows.at += n
            begun += 1
            if progress is not None:
                progress(rows.at, n_tokens)
    finally:
        rows.close()
        if keep is not None:
            keep(begun)


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
        name = spoken(model.ffn_activation)
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

    def put_x(self, layer: int, at: int, rows: NDArray[np.float16]) -> None:
        """Some tokens of a layer."""
        self.x[layer, at : at + len(rows)] = rows

    def put_bits(self, layer: int, at: int, rows: NDArray[np.uint8]) -> None:
        """Likewise."""
        self.bits[layer, at : at + len(rows)] = rows


class Into(Protocol):
    """Takes what is heard of a chunk."""

    def put_x(self, layer: int, at: int, rows: NDArray[np.float16]) -> None:
        """Inputs of a layer, from the chunk's token `at` on."""

    def put_bits(self, layer: int, at: int, rows: NDArray[np.uint8]) -> None:
        """What fired, likewise."""


def collect_by_worker(model: WorkersModel, gives_back: bool, ids: NDArray[np.int32]) -> ChunkSamples:
    """What a worker does; errors: see `opened`."""
    with one_at_a_time:
        engine = opened(model)
        shape = engine.model.n_layer, ids.size
        found = ChunkSamples(
            np.empty((*shape, engine.model.n_embd), np.float16),
            np.empty((*shape, -(-engine.model.n_ff // 8)), np.uint8),
        )
        _Collector(engine, gives_back).collect(ids, found)
        return found


class _Collector:
    """Sees what passes through each layer of an engine."""

    def __init__(self, engine: Engine, gives_back: bool) -> None:
        self._executor = engine.executor
        graph = self._executor.plan.batch
        self._inputs = _predictors_inputs([placed.node for placed in graph.placed.nodes])
        self._pages = ranges_of(engine.file, engine.file.tensors) if gives_back else []

    def collect(self, ids: NDArray[np.int32], into: Into) -> None:
        """Let a chunk pass."""
        executor, model, at = self._executor, self._executor.model, 0

        def hear(taken: Taken) -> None:
            node = taken.node
            if (layer := self._inputs.get(node.name)) is not None:
                values = intermediate(executor, node.tensor("x").name, model.n_embd)
                into.put_x(layer, at, np.clip(values, -LARGEST, LARGEST).astype(np.float16))
            if node.op in HIDDEN:
                fired = hidden_values(executor, node) != 0
                into.put_bits(layer_of(node), at, np.packbits(fired, axis=1, bitorder="little"))
                advise(self._pages, mmap.MADV_DONTNEED)

        def advance() -> None:
            nonlocal at
            at += n_passing(executor)

        with heard(executor, hear):
            run_chunk(executor, ids, advance)


class _Rows:
    """The files of all layers; they grow with what is written, so that a full disk is an error and no signal."""

    def __init__(self, model: Model, folder: Path, n_tokens: int, at: int) -> None:
        self.at, self._files, self._heads = at, list[FileIO](), list[int]()
        with ExitStack() as stack:
            for layer in range(model.n_layer):
                forms: tuple[tuple[str, int], ...] = ("<f2", model.n_embd), ("|u1", -(-model.n_ff // 8))
                for path, (descr, width) in zip(files_of(folder, layer), forms, strict=True):
                    file = stack.enter_context(FileIO(path, "r+b" if at else "w+b"))
                    form = {"descr": descr, "fortran_order": False, "shape": (n_tokens, width)}
                    head = BytesIO()
                    lib_format.write_array_header_1_0(head, form)
                    _write_at(file, 0, head.getbuffer())
                    self._files.append(file)
                    self._heads.append(head.tell())
            self._stack = stack.pop_all()

    def put_x(self, layer: int, at: int, rows: NDArray[np.float16]) -> None:
        """Inputs, from token `at` of the next chunk on."""
        self._put(2 * layer, at, rows)

    def put_bits(self, layer: int, at: int, rows: NDArray[np.uint8]) -> None:
        """What fired, likewise."""
        self._put(2 * layer + 1, at, rows)

    def _put(self, which: int, at: int, rows: NDArray[np.generic]) -> None:
        first = self._heads[which] + (self.at + at) * rows[0].nbytes
        _write_at(self._files[which], first, np.ascontiguousarray(rows).data.cast("B"))

    def write(self, of: ChunkSamples) -> None:
        """The next chunk's."""
        for layer, (x, bits) in enumerate(zip(of.x, of.bits, strict=True)):
            self.put_x(layer, 0, x)
            self.put_bits(layer, 0, bits)

    def close(self) -> None:
        """Nothing is left to be written."""
        self._stack.close()


def _write_at(file: FileIO, first: int, data: memoryview) -> None:
    while data:
        n = os.pwrite(file.fileno(), data, first)
        data, first = data[n:], first + n


def _predictors_inputs(nodes: Sequence[Node]) -> dict[str, int]:
    """The norms before the FFNs, by name, with their layers: what they read is what predictors read."""
    makers = {node.output.name: node for node in nodes}
    return {makers[node.tensor("x").name].name: layer_of(node) for node in nodes if node.op in HIDDEN}
