"""The options of `hotcold offload-dump`, and what it prints. Light to import: the work is elsewhere."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotcold.engine.commands import terminal
from hotcold.engine.commands.loading import heed_compiling
from hotcold.engine.commands.option_names import option_names
from hotcold.engine.commands.options import (
    DeviceName,
    FFNActivation,
    Json,
    KVType,
    ModelPath,
    NBatch,
    NCtx,
    NSlots,
    Quiet,
    Sparsity,
    StreamBatch,
)
from hotcold.engine.commands.reports import note
from hotcold.engine.generation.run_options import RunOptions
from hotcold.errors import SettingError
from hotcold.whole_file import check_output, write_whole

if TYPE_CHECKING:
    from hotcold.engine.dump.report import Report
    from hotcold.engine.plan.budget import DeviceFacts
    from hotcold.engine.plan.plan import Plan
    from hotcold.engine.plan.planning import Source
    from hotcold.engine.plan.wanted import Wanted

GBPS = "For --sweep: bandwidth, 10^9 bytes a second. [default: {:.1f}]"
HOST_GBPS, DEVICE_GBPS, BUS_GBPS = 40.0, 900.0, 25.0
NEEDS = {  # what changes nothing without another option
    "host_gbps": "--sweep LIST",
    "device_gbps": "--sweep LIST",
    "bus_gbps": "--sweep LIST",
    "force": "--html FILE",
}
OF_A_PLAN = ("tensors", "layer", "full", "gpu_index_for", "reset_gpu_index", "disable_gpu_index")
EXCLUDES = {  # what does not go with another option
    "run_it": (*OF_A_PLAN, "device_memory", "card"),
    "sweep": (*OF_A_PLAN, "card"),  # --vram-budget is no contradiction: the sweep has rows of its own
    "disable_gpu_index": ("gpu_index_for", "reset_gpu_index"),
    "like": ("ffn_activation",),  # a shape has its own
}


@dataclass(frozen=True, kw_only=True)
class OffloadDumpCommand:
    """Where weights and intermediates go for a budget. Only --run loads any."""

    model: ModelPath = None
    like: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:TYPE",
            help="A well-known model without its file, or @FILE.json. [default type: q4_0]",
        ),
    ] = None
    predictor_rank: Annotated[int | None, typer.Option(help="For --like; 0: no predictors.")] = None
    vram_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="8 (GiB), 8GB,6GB for two cards, 6000MiB, 80%, auto, or 0."),
    ] = None
    card: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model a token's time on a card, such as rtx4090.")
    ] = None
    device_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Stands in for a card.")] = None
    n_ctx: NCtx = RunOptions.n_ctx
    n_batch: NBatch = RunOptions.n_batch
    kv_type: KVType = RunOptions.kv_type
    n_slots: NSlots = RunOptions.n_slots
    stream_batch: StreamBatch = RunOptions.stream_batch
    sparsity: Sparsity = RunOptions.sparsity
    ffn_activation: FFNActivation = RunOptions.ffn_activation
    activation: Annotated[Path | None, typer.Option(metavar="DIR", help="Activation counts.")] = None
    tensors: Annotated[str | None, typer.Option(metavar="REGEX", help="Show names that match.")] = None
    layer: Annotated[int | None, typer.Option(help="Show this layer.")] = None
    full: Annotated[
        bool, typer.Option("--full", help="List every weight and intermediate, as --json and --html do.")
    ] = False
    as_json: Json = False
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one page with pictures.")] = None
    force: Annotated[bool, typer.Option("--force", help="Overwrite the page.")] = False
    sweep: Annotated[
        str | None, typer.Option(metavar="LIST", help="A row for each budget, such as 0,2GiB,4GiB.")
    ] = None
    host_gbps: Annotated[float | None, typer.Option(help=GBPS.format(HOST_GBPS))] = None
    device_gbps: Annotated[float | None, typer.Option(help=GBPS.format(DEVICE_GBPS))] = None
    bus_gbps: Annotated[float | None, typer.Option(help=GBPS.format(BUS_GBPS))] = None
    gpu_index_for: Annotated[
        str | None, typer.Option(metavar="{hotcold,powerinfer}", help="Write the index of hot neurons.")
    ] = None
    reset_gpu_index: Annotated[bool, typer.Option("--reset-gpu-index", help="Use no index file.")] = False
    disable_gpu_index: Annotated[bool, typer.Option("--disable-gpu-index", help="No neurons on the GPU.")] = (
        False
    )
    run_it: Annotated[
        bool, typer.Option("--run", help="Load, run a few tokens, and show measured beside planned.")
    ] = False
    device: DeviceName = RunOptions.device
    quiet: Quiet = False

    def run(self) -> None:
        """Plan, and print the plan, a row a budget, or what a run of it did."""
        from hotcold.engine.dump import inputs as dump
        from hotcold.engine.plan import planning

        refuse_both(
            {"--run": self.run_it, "--sweep": self.sweep is not None, "--html": self.html is not None}
        )
        refuse_ignored(self)
        source = dump.open_source(
            self.model, self.like, self.predictor_rank, self.activation, self.ffn_activation
        )
        if self.html is not None:
            sources = [] if source.path is None else [source.path]
            check_output(self.html, sources, self.force, option="--html")
        how = planning.wanted(
            source,
            self.sparsity,
            self.n_ctx,
            self.n_batch,
            self.kv_type,
            self.n_slots,
            self.stream_batch,
        )
        facts = dump.facts_for(self.device_memory, self.sweep or self.vram_budget, self.card)
        facts = dump.with_graphs(facts, source, how)
        if self.run_it:
            run_plan(self, source, how)
            return
        if self.device != "auto":
            several = ", or name several cards by their budgets: --vram-budget 8GB,6GB"
            next_step = f"add --run{several if ',' in self.device else ''}"
            raise SettingError("--device", self.device, "a plan is for a budget, not for a device", next_step)
        if self.sweep is not None:
            given = (self.host_gbps, self.device_gbps, self.bus_gbps)
            usual = (HOST_GBPS, DEVICE_GBPS, BUS_GBPS)
            gbps = [b if a is None else a for a, b in zip(given, usual, strict=True)]
            show_sweep(dump.sweep(source, how, self.sweep, facts, gbps), source, self.as_json)
            return
        show_plan(self, source, how, facts)


def show_plan(
    options: OffloadDumpCommand, source: "Source", how: "Wanted", facts: "DeviceFacts | None"
) -> None:
    """The plan for one budget: as text, JSON or a page; the index of its hot neurons, if one is wanted."""
    from hotcold.engine.dump import inputs as dump
    from hotcold.engine.dump import report as reports
    from hotcold.engine.host.resident import memory_note
    from hotcold.engine.plan import planning

    budget = dump.budget_of(options.vram_budget, facts)
    # one that is to be written is made anew
    reset = options.reset_gpu_index or options.gpu_index_for is not None
    plan, lines = planning.plan_source(source, how, budget, reset=reset, disable=options.disable_gpu_index)
    whole = reports.as_json(plan, source.name)
    report = reports.select(whole, options.tensors, options.layer)
    if options.card is not None:
        report["card"] = reports.card_model(plan, options.card)
    said = list(lines)
    if options.gpu_index_for is not None:
        said.append(dump.write_index_for(options.gpu_index_for, plan, source, how))
    if note_of_memory := memory_note(plan):
        said.append(note_of_memory)
    if options.html is not None:
        write_page(whole, plan, source, how, options.html)
        said.append(f"page written to {options.html}")
    for line in () if options.quiet else (*source.model.warnings, *said):
        note(line)
    if options.as_json:
        terminal.write_line(json.dumps(report))
    elif options.html is None:
        is_selected = options.tensors is not None or options.layer is not None
        show_text(report, full=options.full or is_selected)


def refuse_both(outputs: dict[str, bool]) -> None:
    """Each of these options makes an output of its own: SettingError for two of them."""
    given = [name for name, wanted in outputs.items() if wanted]
    if len(given) > 1:
        raise SettingError("output", f"both {given[0]} and {given[1]}", "one of them", "give two commands")


def refuse_ignored(options: OffloadDumpCommand) -> None:
    """SettingError for an option that does not go with another one, or changes nothing without it."""
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    names = option_names(OffloadDumpCommand)
    for name, needed in NEEDS.items():
        option = needed.split()[0]
        if name in given and option.removeprefix("--") not in given:
            bound = f"changes nothing without {option}"
            raise SettingError(names[name], _shown(given[name]), bound, f"add {needed}")
    of_a_page = {} if "as_json" in given else {"html": ("tensors", "layer", "card")}  # a page shows every row
    for name, excluded in (EXCLUDES | of_a_page).items():
        for other in excluded:
            if name in given and other in given:
                bound = f"does not go with {names[name]}"
                raise SettingError(names[other], _shown(given[other]), bound, "leave one of them out")


def _shown(value: object) -> object:
    """A flag has no value to show."""
    return None if value is True else value


def run_plan(options: OffloadDumpCommand, source: "Source", how: "Wanted") -> None:
    """Measured beside planned."""
    from hotcold.engine.dump import run as dump_run
    from hotcold.engine.dump.tables import run_table
    from hotcold.engine.host.machine import thread_count
    from hotcold.engine.host.resident import memory_note
    from hotcold.engine.run.device_plan import opened_plan
    from hotcold.engine.run.request import parse_request
    from hotcold.gguf_io import open_gguf

    if source.path is None:
        raise SettingError("--run", source.name, "a shape has no weights to run", "give a file with -m")
    budget = RunOptions.vram_budget if options.vram_budget is None else options.vram_budget
    request = parse_request(options.device, budget)
    heed_compiling(options.quiet)
    with opened_plan(source, how, request) as (opened, plan, lines), open_gguf(source.path) as file:
        of_memory = filter(None, [memory_note(plan)])
        for line in () if options.quiet else (*source.model.warnings, *lines, *of_memory):
            note(line)
        others = dump_run.neighbours(source, how, plan) if opened else []
        rows = dump_run.run(plan, file, thread_count(None), opened, others)
        name = ",".join(device.name for device in opened) or "cpu"
    if options.as_json:
        terminal.write_line(
            json.dumps({"schema_version": 1, "model": source.name, "device": name, "run": rows})
        )
        return
    console = terminal.console()
    console.print(f"{source.name} on {name}, VRAM budget {plan.budget.text}", markup=False)
    console.print(run_table(rows))


def show_text(report: "Report", full: bool) -> None:
    """The tables on stdout: every row, or the plan at a glance."""
    from hotcold.engine.dump.glance import show_glance
    from hotcold.engine.dump.text import show

    (show if full else show_glance)(report, terminal.console())


def show_sweep(rows: list[dict[str, Any]], source: "Source", as_json: bool) -> None:
    """A row a budget."""
    if as_json:
        terminal.write_line(json.dumps({"schema_version": 1, "model": source.name, "sweep": rows}))
        return
    from hotcold.engine.dump.tables import sweep_table

    console = terminal.console()
    console.print(f"{source.name}; activation counts: {source.frequencies_from}", markup=False)
    console.print(sweep_table(rows))
    for row in rows:
        if "error" in row:
            console.print(f"{row['budget']}: {row['error']}", markup=False)


def write_page(whole: "Report", plan: "Plan", source: "Source", how: "Wanted", path: Path) -> None:
    """The page with pictures."""
    from hotcold.engine.dump.html import page
    from hotcold.engine.plan.coverage import coverage_curve

    curve = coverage_curve(source.model, replace(how, n_batch=plan.n_batch), source.frequencies)
    write_whole(path, page(whole, curve).encode(errors="replace"), option="--html")
