"""How a command loads its model, and what it says of that."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hotcold.engine.commands.options import ModelOptions, part
from hotcold.engine.commands.reports import ended_by_interrupt, note
from hotcold.engine.commands.terminal import progress_bar
from hotcold.engine.generation.run_options import RunOptions
from hotcold.light_gguf import lighten

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from hotcold.engine.generation.generation import Engine
    from hotcold.gguf_io import GGUFFile

FROM_DISK = 0.3  # seconds; what is in memory already takes less


def open_engine(
    options: ModelOptions,
    quiet: bool = False,
    n_ctx: int | None = None,
    file: "GGUFFile | None" = None,
    tensors: "Mapping[str, NDArray[np.float32]] | None" = None,
    populate: bool = True,
    **others: Any,
) -> "Engine":
    """The model, ready to run; a bar shows what is read from disk, and rows that are copied to a device.

    Args:
        n_ctx: positions where the options leave them open.
        file: the model's, where it is open; the engine closes it.
        tensors, populate: see `load_with`.
        others: fields of `RunOptions` that the command decides.
    """
    lighten()
    heed_compiling(quiet)
    from hotcold.engine.generation.loading import load_with

    if not hasattr(options, "head_sparsity"):  # who measures a model looks at all of its logits
        others.setdefault("head_sparsity", "off")
    how = part(RunOptions, options, n_ctx=n_ctx if options.n_ctx is None else options.n_ctx, **others)
    with progress_bar(not quiet and sys.stderr.isatty()) as bar:

        def advance(done: int, total: int, seconds: float) -> None:
            if bar is not None:
                bar(f"hot rows to the device, {done / max(seconds, 1e-9) / 1e9:.1f} GB/s", done, total)

        def read(done: int, total: int, seconds: float) -> None:
            if bar is not None and seconds > FROM_DISK:
                bar(f"the file into memory, {done / seconds / 1e9:.1f} GB/s", done, total)

        return load_with(options.path if file is None else file, how, advance, read, tensors, populate)


def heed_compiling(quiet: bool) -> None:
    """Say when kernels are compiled, for which a user has to wait, and let Ctrl-C end it."""
    from hotcold.kernels.cpu.machine_code import compile_within

    said = [quiet]

    @contextmanager
    def around() -> Iterator[None]:
        if not said[0]:
            note("compiling kernels, once; this takes some seconds")
        said[0] = True
        with ended_by_interrupt():
            yield

    compile_within(around)


def warn(engine: "Engine", quiet: bool) -> None:
    """What a user should know of the file and the settings."""
    for warning in () if quiet else engine.warnings:
        note(f"warning: {warning}")
