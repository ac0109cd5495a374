"""From a file and settings to an engine that is ready to run."""

import os
import sys
import time
from dataclasses import replace

from hotcold.engine import settings
from hotcold.engine.device.store import Progress
from hotcold.engine.generate.generation import Engine
from hotcold.engine.model.model import load_model
from hotcold.engine.plan.planning import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.offload import Request, load_executor
from hotcold.engine.run.trace import print_node
from hotcold.engine.text.tokenizer import load_tokenizer
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cpu.team import compile_kernels
from hotcold.kernels.formats import KV_BYTES


def load(
    path: str | os.PathLike[str] | None = None,
    n_ctx: int | None = None,
    n_batch: int = settings.DEFAULT_N_BATCH,
    threads: int | None = None,
    sparsity: str = "auto",
    sparse_pred_threshold: float | None = None,
    device: str = "auto",
    vram_budget: float | str = "auto",
    kv_type: str = "f16",
    force_pretokenizer: str | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Engine:
    """Open a model and make it ready to run.

    Args:
        path: a GGUF file or a directory that holds one; None is the bundled model.
        n_ctx: positions of the KV cache; None: the model's own length up to 4096.
        n_batch: prompt tokens that run together, clamped to n_ctx.
        threads: None: the physical cores within the process's affinity and quota.
        sparsity: "auto", "exact", "off" or "predictor"; see `settings.resolve_sparsity`.
        sparse_pred_threshold: predictor outputs at or above it count as active; None: the environment
            variable LLAMA_SPARSE_PRED_THRESHOLD, else the file's.
        device: "auto" (the first card if it can be used), "cpu", "cuda", "cuda:N" or "emulated".
        vram_budget: GPU memory to use: "auto" (what is free), 0, "8GiB", a number of GiB, "80%".
        kv_type: "f16" or "f32", numbers of the KV cache.
        force_pretokenizer: how a byte-level BPE vocabulary cuts text into words, whatever the file says: a
            name of `pretokenizers.PRETOKENIZERS`.
        strict: refuse whatever would run elsewhere, or with less, than was asked for.
        progress: hears of the copies to the device: bytes there, bytes in all, seconds.

    Raises:
        SettingError: a value out of its bounds, or a sparsity that the file cannot run in.
        FileError: a file that is missing, damaged or not supported.
        DoesNotFitError: not enough memory.
        DeviceError: a GPU is asked for that cannot be used.
    """
    started = time.perf_counter()
    settings.check_device(device, vram_budget)
    settings.is_no_budget(vram_budget)
    settings.one_of("kv_type", kv_type, tuple(KV_BYTES))
    settings.one_of("sparsity", sparsity, settings.SPARSITIES)
    settings.batch_length(n_batch, settings.context_length(n_ctx, settings.MAX_N_CTX).n_ctx)
    n_threads = settings.thread_count(threads)
    file = open_gguf(settings.model_path(path))
    try:
        model = load_model(file)
        threshold = settings.resolve_threshold(sparse_pred_threshold, model.sparse_threshold)
        model = replace(model, sparse_threshold=threshold)
        mode, reason = settings.resolve_sparsity(model, sparsity)
        context = settings.context_length(n_ctx, model.n_ctx_train)
        tokenizer = load_tokenizer(file, force_pretokenizer, model.n_vocab)
        compile_kernels()
        how = Wanted(mode, context.n_ctx, settings.batch_length(n_batch, context.n_ctx), kv_type)
        request = Request(device, vram_budget, strict)
        loaded = load_executor(model, file, how, n_threads, request, progress)
        executor = _traced(loaded.executor, settings.debug_level())
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
            *tokenizer.warnings,
            *([context.warning] if context.warning else []),
            *loaded.warnings,
        ),
        device=loaded.device,
        load_seconds=time.perf_counter() - started,
    )


def _traced(executor: Executor, debug_level: int) -> Executor:
    """Print the graphs, and let each node be printed as it runs, if HOTCOLD_DEBUG asks for it."""
    if debug_level >= settings.PRINT_GRAPHS:
        for graph in executor.graphs:
            print(graph, file=sys.stderr)
    if debug_level >= settings.TRACE_NODES:
        executor.trace = print_node
    return executor
