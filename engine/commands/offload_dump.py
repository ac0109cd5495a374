"""The options of `hotcold offload-dump`, and what it prints. Light to import: the work is elsewhere."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotcold.engine import settings
from hotcold.engine.commands.options import DeviceName, Json, KVType, ModelPath, NBatch, NCtx, Quiet, Sparsity
from hotcold.errors import SettingError

if TYPE_CHECKING:
    from rich.console import Console

    from hotcold.engine.dump.report import Report
    from hotcold.engine.plan.plan import Plan
    from hotcold.engine.plan.planning import Source, Wanted

Gbps = Annotated[float, typer.Option(help="For --sweep: bandwidth, 10^9 bytes a second.")]


def offload_dump(
    model: ModelPath = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="NAME:TYPE", help="A well-known model without its file, or @FILE.json."),
    ] = None,
    predictor_rank: Annotated[int | None, typer.Option(help="For --like; 0: no predictors.")] = None,
    vram_budget: Annotated[
        str | None, typer.Option(help="8 (GiB), 8GiB, 6000MiB, 80%, auto, or 0: the CPU alone.")
    ] = None,
    device_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Stands in for a card.")] = None,
    ctx_size: NCtx = None,
    batch_size: NBatch = settings.DEFAULT_N_BATCH,
    kv_type: KVType = "f16",
    sparsity: Sparsity = "auto",
    activation: Annotated[Path | None, typer.Option(metavar="DIR", help="Activation counts.")] = None,
    tensors: Annotated[str | None, typer.Option(metavar="REGEX", help="Show names that match.")] = None,
    layer: Annotated[int | None, typer.Option(help="Show this layer.")] = None,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one page with pictures.")] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="LIST", help="A row for each budget, such as 0,2GiB,4GiB.")
    ] = None,
    host_gbps: Gbps = 40.0,
    device_gbps: Gbps = 900.0,
    bus_gbps: Gbps = 25.0,
    gpu_index_for: Annotated[
        str | None, typer.Option(metavar="{hotcold,powerinfer}", help="Write the index of hot neurons.")
    ] = None,
    reset_gpu_index: Annotated[bool, typer.Option("--reset-gpu-index", help="Use no index file.")] = False,
    disable_gpu_index: Annotated[
        bool, typer.Option("--disable-gpu-index", help="No neurons on the GPU.")
    ] = False,
    run: Annotated[
        bool, typer.Option("--run", help="Load, run a few tokens, and show measured beside planned.")
    ] = False,
    device: DeviceName = "auto",
    quiet: Quiet = False,
) -> None:
    """Where weights and intermediates go for a budget. Only --run loads any."""
    from hotcold.engine.dump import inputs as dump
    from hotcold.engine.dump import report as reports
    from hotcold.engine.plan import planning

    refuse_both({"--run": run, "--sweep": sweep is not None, "--html": html is not None})
    source = dump.open_source(model, like, predictor_rank, activation)
    how = planning.wanted(source, sparsity, ctx_size, batch_size, kv_type)
    facts = dump.device_facts(device_memory, vram_budget or sweep)
    if run:
        run_plan(source, how, vram_budget, device, as_json, quiet)
        return
    if device != "auto":
        raise SettingError("--device", device, "a plan is for a budget, not for a device", "add --run")
    if sweep is not None:
        rows = dump.sweep(source, how, sweep, facts, (host_gbps, device_gbps, bus_gbps))
        show_sweep(rows, source, as_json)
        return
    budget = dump.budget_of(vram_budget, facts)
    plan, lines = planning.plan_source(
        source, how, budget, facts, reset=reset_gpu_index, disable=disable_gpu_index
    )
    whole = reports.as_json(plan, source.name)
    report = reports.select(whole, tensors, layer)
    said = list(lines)
    if gpu_index_for is not None:
        said.append(dump.write_index_for(gpu_index_for, plan, source, how))
    if html is not None:
        write_page(whole, plan, source, how, html)
        said.append(f"page written to {html}")
    for line in () if quiet else (*source.model.warnings, *said):
        print(f"hotcold: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps(report))
    elif html is None:
        show_text(report)


def refuse_both(outputs: dict[str, bool]) -> None:
    """Each of these options makes an output of its own: SettingError for two of them."""
    given = [name for name, wanted in outputs.items() if wanted]
    if len(given) > 1:
        raise SettingError("output", f"both {given[0]} and {given[1]}", "one of them", "give two commands")


def run_plan(
    source: "Source", how: "Wanted", vram_budget: str | None, device: str, as_json: bool, quiet: bool
) -> None:
    """Measured beside planned."""
    from hotcold.engine.dump import run as dump_run
    from hotcold.engine.dump.text import run_table
    from hotcold.engine.run.offload import Request, opened_plan
    from hotcold.gguf_io import open_gguf

    if source.path is None:
        raise SettingError("--run", source.name, "a shape has no weights to run", "give a file with -m")
    request = Request(device, "auto" if vram_budget is None else vram_budget)
    with opened_plan(source, how, request) as (opened, plan, lines), open_gguf(source.path) as file:
        for line in () if quiet else (*source.model.warnings, *lines):
            print(f"hotcold: {line}", file=sys.stderr)
        rows = dump_run.run(plan, file, settings.thread_count(None), opened)
        name = opened.name if opened is not None else "cpu"
    if as_json:
        print(json.dumps({"schema_version": 1, "model": source.name, "device": name, "run": rows}))
        return
    console = _console()
    console.print(f"{source.name} on {name}, VRAM budget {plan.budget.text}", markup=False)
    console.print(run_table(rows))


def show_text(report: "Report") -> None:
    """The tables on stdout."""
    from hotcold.engine.dump.text import show

    show(report, _console())


def _console() -> "Console":
    """A console on stdout: of the terminal's width, else 80 columns; a reader that ends early is no error."""
    from rich.console import Console

    class Stdout(Console):
        """Lets whoever called see that nobody reads on, where rich would end the process with 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Stdout(width=None if sys.stdout.isatty() else 80, highlight=False)


def show_sweep(rows: list[dict[str, Any]], source: "Source", as_json: bool) -> None:
    """A row a budget."""
    if as_json:
        print(json.dumps({"schema_version": 1, "model": source.name, "sweep": rows}))
        return
    from hotcold.engine.dump.text import sweep_table

    console = _console()
    console.print(f"{source.name}; activation counts: {source.frequencies_from}", markup=False)
    console.print(sweep_table(rows))
    for row in rows:
        if "error" in row:
            console.print(f"{row['budget']}: {row['error']}", markup=False)


def write_page(whole: "Report", plan: "Plan", source: "Source", how: "Wanted", path: Path) -> None:
    """The page with pictures."""
    from hotcold.engine.dump.html import page
    from hotcold.engine.plan.placement import coverage_curve
    from hotcold.whole_file import write_whole

    curve = coverage_curve(
        source.model, source.frequencies, how.sparsity, how.n_ctx, plan.n_batch, how.kv_type
    )
    write_whole(path, page(whole, curve).encode(), option="--html")
