"""From a file and settings to an engine that is ready to run."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.host.machine import thread_count
from hotcold.engine.host.resident import make_resident, read_into_memory
from hotcold.engine.model.calibration import threshold_note
from hotcold.engine.model.context import MAX_N_CTX, batch_length, context_length
from hotcold.engine.model.ffn_activation import hint_by_name, with_activation
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Model
from hotcold.engine.model.model_path import model_path
from hotcold.engine.model.sparsity import SPARSITY_CHOICES, resolve_sparsity, resolve_threshold
from hotcold.engine.plan.footprint import check_kv_type
from hotcold.engine.plan.planning import checked_stream_batch
from hotcold.engine.plan.wanted import MAX_SLOTS, Wanted
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.offload import load_executor
from hotcold.engine.run.request import Request, parse_request
from hotcold.engine.run.trace import Tracing, print_node
from hotcold.engine.settings import PRINT_GRAPHS, TRACE_NODES, debug_level, one_of, whole_number
from hotcold.engine.tokenizer.tokenizer import load_tokenizer
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.gguf_io.residency import ReadProgress

if TYPE_CHECKING:
    from hotcold.engine.device.store import LoadProgress

DEFAULTS = RunOptions()


def load(
    path: str | os.PathLike[str] | None = None,
    n_ctx: int | None = DEFAULTS.n_ctx,
    n_batch: int = DEFAULTS.n_batch,
    threads: int | None = DEFAULTS.threads,
    sparsity: str = DEFAULTS.sparsity,
    sparse_pred_threshold: float | None = DEFAULTS.sparse_pred_threshold,
    device: str = DEFAULTS.device,
    vram_budget: float | str = DEFAULTS.vram_budget,
    kv_type: str = DEFAULTS.kv_type,
    force_pretokenizer: str | None = DEFAULTS.force_pretokenizer,
    ffn_activation: str | None = DEFAULTS.ffn_activation,
    strict: bool = DEFAULTS.strict,
    mlock: bool = DEFAULTS.mlock,
    no_mmap: bool = DEFAULTS.no_mmap,
    no_graphs: bool = DEFAULTS.no_graphs,
    check_tensors: bool = DEFAULTS.check_tensors,
    head_sparsity: str = DEFAULTS.head_sparsity,
    n_slots: int = DEFAULTS.n_slots,
    stream_batch: int | None = DEFAULTS.stream_batch,
    progress: "LoadProgress | None" = None,
) -> Engine:
    """Open a model and make it ready to run.

    Args:
        path: a GGUF file or a directory that holds one; None is the bundled model.
        n_ctx, n_batch, threads, sparsity, sparse_pred_threshold, device, vram_budget, kv_type,
            force_pretokenizer, ffn_activation, strict, mlock, no_mmap, no_graphs, check_tensors, head_sparsity,
            n_slots, stream_batch: see `RunOptions`.
        progress: hears of the copies to the device: bytes there, bytes in all, seconds.

    Raises:
        SettingError: a value out of its bounds, or a sparsity that the file cannot run in.
        FileError: a file that is missing, damaged or not supported.
        DoesNotFitError: not enough memory.
        DeviceError: a GPU is asked for that cannot be used.
    """
    options = RunOptions(
        n_ctx,
        n_batch,
        threads,
        sparsity,
        sparse_pred_threshold,
        device,
        vram_budget,
        kv_type,
        force_pretokenizer,
        ffn_activation,
        strict,
        mlock,
        no_mmap,
        no_graphs,
        check_tensors,
        head_sparsity,
        n_slots,
        stream_batch,
    )
    return load_with(path, options, progress)


def load_with(
    path: str | os.PathLike[str] | GGUFFile | None,
    options: RunOptions,
    progress: "LoadProgress | None" = None,
    reading: ReadProgress | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    populate: bool = True,
) -> Engine:
    """`load` with its options as one value.

    Args:
        path: see `load`; or the file itself, open, which is closed with the engine, or if there is none.
        tensors: more than the file has, or in place of its own; the engine sees what becomes of them.
        reading: hears of the file on its way into memory: bytes there, bytes in all, seconds.
        populate: bring what the CPU reads of it there at once, if it fits.

    Raises:
        SettingError, FileError, DoesNotFitError, DeviceError: see `load`.
    """
    started = time.perf_counter()
    request, n_threads = _checked(options)
    file = path if isinstance(path, GGUFFile) else open_gguf(model_path(path))
    try:
        for name, numbers in (tensors or {}).items():
            file.add(name, numbers)
        model, mode, reason = _model(file, options)
        context = context_length(options.n_ctx, model.n_ctx_train)
        tokenizer = load_tokenizer(file, options.force_pretokenizer, model.n_vocab)
        if options.no_mmap:
            read_into_memory(file, reading)
        if options.check_tensors:
            from hotcold.gguf_io.check_tensors import check_tensors  # which takes a moment

            check_tensors(file, n_threads, reading)
        n_batch = max(batch_length(options.n_batch, context.n_ctx), options.n_slots)
        how = Wanted(mode, context.n_ctx, n_batch, options.kv_type, options.n_slots, options.stream_batch)
        loaded = load_executor(model, file, how, n_threads, request, progress)
        executor = _traced(loaded.executor, debug_level())
        memory = make_resident(executor.plan, file, options.mlock, reading) if populate else ()
    except BaseException:
        file.close()
        raise
    return Engine(
        file,
        model,
        tokenizer,
        executor,
        sparsity=mode,
        sparsity_reason=reason,
        warnings=(
            *model.warnings,
            *(hint_by_name(model, file) if options.ffn_activation is None else ()),
            *tokenizer.warnings,
            *([context.warning] if context.warning else []),
            *loaded.warnings,
            *memory,
            *([threshold_note(file)] if mode == "threshold" and not tensors else []),
        ),
        devices=loaded.devices,
        load_seconds=time.perf_counter() - started,
    )


def _checked(options: RunOptions) -> tuple[Request, int]:
    """What the options ask of devices, and the number of threads; what is wrong shows before a file is opened."""
    request = parse_request(options.device, options.vram_budget, options.strict, not options.no_graphs)
    check_kv_type(options.kv_type)
    one_of("sparsity", options.sparsity, SPARSITY_CHOICES)
    one_of("head_sparsity", options.head_sparsity, ("auto", "off"))
    batch_length(options.n_batch, context_length(options.n_ctx, MAX_N_CTX).n_ctx)
    n_threads = thread_count(options.threads)
    checked_stream_batch(options.stream_batch)
    whole_number("n_slots", options.n_slots, 1, MAX_SLOTS, such_as="--slots 4")
    return request, n_threads


def _model(file: GGUFFile, options: RunOptions) -> tuple[Model, str, str]:
    """The file's model, with what the options say of its FFN and its head; how the FFN runs, and why."""
    model = with_activation(load_model(file), file, options.ffn_activation)
    check_kv_type(options.kv_type, model)
    mode, reason = resolve_sparsity(model, options.sparsity)
    threshold = resolve_threshold(options.sparse_pred_threshold, model.sparse_threshold, mode)
    sparse_head = options.head_sparsity == "auto" and options.n_slots == 1
    return replace(model, sparse_threshold=threshold, sparse_head=sparse_head), mode, reason


def _traced(executor: Executor, debug_level: int) -> Executor:
    """Print the graphs, and let each node be printed as it runs, if HOTCOLD_DEBUG asks for it."""
    if debug_level >= PRINT_GRAPHS:
        for graph in executor.plan.graphs:
            print(graph.graph, file=sys.stderr)
    if debug_level >= TRACE_NODES:
        executor.taking = Tracing(executor, print_node)
    return executor
