"""The offload dump for people: text of 80 columns, or as many as the terminal has."""

import textwrap
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotcold.engine.dump.alike import Band
from hotcold.engine.dump.report import GRAPHS, Report
from hotcold.engine.plan.budget import mib
from hotcold.engine.plan.graph_memory import NODE_BYTES, graphs_kept

BAR = 12
WEIGHTS_HEAD = f"{'name':<26}{'type':<6}{'shape / ne':<15}{'bytes':>13}  device"
INTERMEDIATES_HEAD = f"{'step':>4} {'at':<3} {'name':<18} {'op':<16} {'shape':<15}{'bytes':>10} {'offset':>9}"
EIGHTHS = " ▏▎▍▌▋▊▉█"
TOTALS = {
    "weights": "dense weights",
    "predictors": "predictors",
    "kv_cache": "KV cache",
    "hot_rows": "hot rows",
    "index": "their index",
    "thresholds": "their thresholds",
    "arena": "arena",
    "workspace": "workspace",
    "staging": "staging buffers",
    "padding": "padding",
    "left_over": "left over",
}
SELDOM = "thresholds", "staging"
"""Of those, the ones that are told only where there are any: of one mode alone, and of prompts that are sent for."""


def bar(share: float, width: int = BAR) -> str:
    """A bar of `width` cells, filled to the share."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(width)


def short_form(report: Report) -> list[str]:
    """The plan in a few lines."""
    totals, budget = report["totals"], report["budget"]
    gpu, n_layer = totals["gpu"], report["model"]["n_layer"]
    head = f"budget {budget['text']}: {gpu['budget']} bytes, {mib(gpu['budget'])} ({budget['why']})"
    if not gpu["budget"]:
        return [head, "everything runs on the CPU"]
    spent = ", ".join(f"{title} {mib(gpu[key])}" for key, title in TOTALS.items() if gpu[key])
    return [
        head,
        *card_shares(report),
        f"{totals['dense_layers']} of {n_layer} layers have their dense part on the GPU",
        f"{totals['hot_share']:.1%} of the {report['model']['unit']}s are hot; they cover {totals['coverage']:.1%} of the activations",
        spent,
    ]


def card_shares(report: Report) -> Iterator[str]:
    """Of several cards each one's layers, and how much of its budget they take."""
    cards = report["totals"]["cards"]
    for card in cards if len(cards) > 1 else ():
        (first, last), used = card["layers"], card["budget"] - card["left_over"]
        with_head = " and the head" if card is cards[-1] else ""
        yield f"{card['name']}: layers {first} to {last}{with_head}, by its part of all budgets; {mib(used)} of {mib(card['budget'])}"


def show(report: Report, console: Console) -> None:
    """Print every row of a report."""
    show_summary(report, console)
    if report["weights"]:
        heading(console, "Weights")
        lines(console, weight_lines(report, console.width))
    if report["layers"]:
        heading(console, "FFN split")
        console.print(Text(f"activation counts: {report['frequencies_from']}"))
        console.print(split_table([Band((row,)) for row in report["layers"]]))
    for name in GRAPHS:
        if report["intermediates"][name]:
            n = 1 if name == "decode" else report["settings"]["n_batch"]
            heading(
                console,
                f"Intermediates, {'one decoded token' if name == 'decode' else f'a batch of {n} tokens'}",
            )
            lines(console, intermediate_lines(report["intermediates"][name], console.width))
            paragraphs(console, arena_lines(report["arenas"][name]))
    show_totals(report, console)


def show_summary(report: Report, console: Console) -> None:
    """What is planned, and its result in a few lines."""
    model = report["model"]
    console.print(
        Text(
            f"{model['name']}: {model['architecture']}, {model['n_layer']} layers, "
            f"n_embd {model['n_embd']}, {_ffn_of(model)}, {mib(model['bytes'])}",
            "bold",
        )
    )
    console.print(Text(", ".join(f"{key} {value}" for key, value in report["settings"].items())))
    paragraphs(console, short_form(report))
    for note in report["notes"]:
        console.print(Text(f"note: {note}", "yellow"))


def _ffn_of(model: Report) -> str:
    """The sizes of its FFNs, or of its experts."""
    experts = model["experts"]
    if experts is None:
        return f"n_ff {model['n_ff']}"
    shared = f" and a shared one of {experts['n_ff_shared']}" if experts["n_ff_shared"] else ""
    return f"{experts['n_expert']} experts of {experts['n_ff']}{shared}, {experts['n_used']} used"


def show_totals(report: Report, console: Console) -> None:
    """What both sides hold, and what a token moves."""
    heading(console, "Totals")
    for card in report["totals"]["cards"]:
        console.print(totals_table(card, card["name"] if len(report["totals"]["cards"]) > 1 else "the GPU"))
    of_prompts = prompt_lines(report)
    paragraphs(console, (*context_lines(report), *host_lines(report), *traffic_lines(report), *of_prompts))
    if "card" in report:
        n, title = len(report["totals"]["cards"]), report["card"]["title"]
        which = f"one {title}" if n == 1 else f"{n} cards, {title} each"
        heading(console, f"On {which}: a model, nothing of it was measured")
        paragraphs(console, card_lines(report["card"]))


def heading(console: Console, text: str) -> None:
    """A title with a blank line before it."""
    console.print()
    console.print(Text(text, "bold cyan"))


def lines(console: Console, texts: Iterable[str]) -> None:
    """Lines as they are; many, so without the console's markup and wrapping."""
    console.out("\n".join(texts), highlight=False)


def paragraphs(console: Console, texts: Iterable[str]) -> None:
    """Lines of words, wrapped."""
    lines(
        console,
        (line for text in texts for line in textwrap.wrap(text, console.width, subsequent_indent="  ")),
    )


def weight_lines(report: Report, width: int) -> Iterator[str]:
    """A line for each weight, and one that says why it is there."""
    yield WEIGHTS_HEAD
    for row in report["weights"]:
        yield from weight_row(row)
        placed = f"; {row['device_bytes']} bytes on the device" if row["device_bytes"] else ""
        yield from _wrapped(f"ne {_list(row['ne'])}; {row['why']}{placed}", width)
    for row in report["kv_cache"]:
        yield cache_line(row)
        yield from _wrapped(row["why"], width)


def weight_row(row: Report) -> Iterator[str]:
    """One weight; a long name has a line of its own."""
    side = row["device"] if row["device"] != "split" else f"split {row['device_rows']}/{row['rows']}"
    name = row["name"]
    if len(name) > 25:
        yield name
        name = ""
    kind = f"{row['type']:<5} {_list(row['shape'])}"  # names of types have up to seven letters
    yield f"{name:<26}{kind} {row['bytes']:>{33 - len(kind)}}  {side}"  # a long shape takes of the bytes' room


def cache_line(row: Report) -> str:
    """One layer's KV cache."""
    name, held = f"KV cache of layer {row['layer']}", f"{row['positions']} positions"
    if row["slots"] > 1:
        held = f"{row['slots']} x {held}"
    return f"{name:<32}{held:<15}{row['bytes']:>13}  {row['device']}"


def _list(numbers: list[int]) -> str:
    return "[" + ", ".join(map(str, numbers)) + "]"


def _wrapped(text: str, width: int, indent: int = 4) -> list[str]:
    blank = " " * indent
    return textwrap.wrap(
        text,
        width,
        initial_indent=blank,
        subsequent_indent=blank,
        break_long_words=False,
        break_on_hyphens=False,
    )


def split_table(bands: Iterable[Band]) -> Table:
    """Two lines a band of layers, in the words of PowerInfer."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("layer", justify="right")
    table.add_column("rows")
    table.add_column("hot", justify="right")
    table.add_column("", style="red")
    table.add_column("covers", justify="right")
    table.add_column("MiB", justify="right")
    for band in bands:
        layers, hot = band.layers, band.shares("hot_share")
        bucket = ", ".join((_span(*map(str, band.n_hot)), "1", "1", "1"))
        rows = f"gpu_idx {_list(band.rows[0]['gpu_idx'])}\ngpu_bucket [{bucket}]"
        if band.rows[0]["experts"] is not None:
            rows += f"\nexperts {_sides(band)}"
        covers = _span(*(f"{share:.1%}" for share in band.shares("coverage")))
        table.add_row(
            _span(str(layers[0]), str(layers[-1])),
            Text(rows),
            _span(*(f"{share:.1%}" for share in hot)),
            bar(sum(hot) / 2),
            covers,
            f"{band.n_bytes / (1 << 20):.1f}",
        )
    return table


def _sides(band: Band) -> str:
    """How many experts of a layer are on each side, and divided."""
    words = {"gpu": "on the GPU", "split": "divided", "cpu": "on the CPU"}
    counts = {side: [row["experts"][side] for row in band.rows] for side in words}
    return ", ".join(
        f"{_span(str(min(n)), str(max(n)))} {words[side]}" for side, n in counts.items() if max(n)
    )


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first}-{last}"


def intermediate_lines(rows: list[Report], width: int) -> Iterator[str]:
    """Each step: what it makes and where, from what, by which rule, and who takes its bytes next."""
    yield INTERMEDIATES_HEAD
    for row in rows:
        yield intermediate_line(row)
        of = f"from {', '.join(row['operands'])}; {row['rule']}; used in steps {row['first_step']} to {row['last_step']}"
        after = f"; bytes then go to {', '.join(row['reused_by'])}" if row["reused_by"] else ""
        across = "; crosses the bus" if row["crosses_bus"] else ""
        if row["reads_over_bus"]:
            across = f"; reads {', '.join(row['reads_over_bus'])} over the bus"
        yield from _wrapped(of + across + after, width, 9)


def intermediate_line(row: Report) -> str:
    """What a step makes, and where."""
    offset = "own array" if row["own_array"] else "-" if row["offset"] is None else str(row["offset"])
    made = f"{row['step']:>4} {row['device']:<3} {row['name']}"
    left = f"{made:<27} {row['op']}"
    right = f"{_list(row['shape'])} {row['type']}"
    right = (
        f"{right:<15}{row['bytes']:>10} {offset:>9}"
        if len(right) <= 15
        else f"{right} {row['bytes']} {offset:>9}"
    )
    return left + right.rjust(max(80 - len(left), len(right) + 1))


def arena_lines(arenas: Report) -> Iterator[str]:
    """Size and peak of each side's arena."""
    for side, arena in arenas.items():
        peak = f", most of it in step {arena['peak_step']}, {arena['peak_node']}: {arena['peak_bytes']} bytes"
        yield f"arena of the {side.upper()}: {arena['bytes']} bytes{peak if arena['bytes'] else ''}"


def totals_table(gpu: Report, name: str) -> Table:
    """What a card's budget is spent on."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_footer=True)
    table.add_column(f"on {name}", footer="budget")
    table.add_column("bytes", justify="right", footer=str(gpu["budget"]))
    table.add_column("MiB", justify="right", footer=_mib(gpu["budget"]))
    table.add_column("", style="red")
    for key, title in TOTALS.items():
        if key in SELDOM and not gpu[key]:
            continue
        share = gpu[key] / gpu["budget"] if gpu["budget"] else 0.0
        table.add_row(title, str(gpu[key]), _mib(gpu[key]), bar(share, 24))
    return table


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.2f}"


def context_lines(report: Report) -> Iterator[str]:
    """What the CUDA context takes beside the budget, and graphs."""
    for device in filter(None, (budget["device"] for budget in report["budget"]["cards"])):
        context = device["context_bytes"]
        yield f"outside the budget: CUDA context of {device['name']}, {context} bytes, {mib(context)}"
        if of_graphs := device["graph_bytes"]:
            kept = graphs_kept(report["settings"]["n_slots"])
            yield f"outside the budget: {kept}, at most {of_graphs} bytes, {mib(of_graphs)}, assumed ({NODE_BYTES} a node)"


def host_lines(report: Report, is_mapped: bool = True) -> Iterator[str]:
    """What the host serves; weights lie in the mapped file, or in memory where the file was read into it."""
    cpu = report["totals"]["cpu"]
    parts = ", ".join(f"{name.replace('kv_cache', 'KV cache')} {mib(n)}" for name, n in cpu.items())
    where = "stay in the mapped file" if is_mapped else "are in memory, with the whole file"
    yield f"on the CPU: {parts}; weights {where}"


def traffic_lines(report: Report) -> Iterator[str]:
    """What a decoded token moves."""
    traffic = report["traffic"]
    yield (
        f"a token reads at most {mib(traffic['host_bytes'])} on the CPU, {mib(traffic['device_bytes'])} on the GPU"
    )
    in_place = f", {traffic['in_place_bytes']} of them read by merges" if traffic["in_place_bytes"] else ""
    yield (
        f"over the bus {traffic['to_device_bytes']} bytes up{in_place}, {traffic['to_host_bytes']} down, "
        f"in {traffic['copies']} copies"
    )


def prompt_lines(report: Report) -> Iterator[str]:
    """From which batch on rows are sent to the device, and why."""
    found = report["streaming"]
    if found is None:
        if report["not_streamed"]:
            yield f"prompts: {report['not_streamed']}"
        return
    sent, buffers, least = mib(found["sent_bytes"]), mib(found["buffer_bytes"]), found["least_tokens"]
    yield (
        f"prompts: for a batch of {least} tokens and more {sent} are sent to the GPU, in {len(found['pieces'])} pieces "
        f"through two staging buffers of {buffers}, and it does all of the batch"
    )
    if found["stays"]:
        yield f"  but for {', '.join(found['stays'])}"
    if report["not_streamed"]:
        yield f"  but nothing for {report['not_streamed']}"
    if found["asked"] is not None:
        yield "  as --stream-batch asks"
        return
    bus, products = found["usual_bus_bytes"], found["usual_cpu_products"]
    sending, a_token = 1e3 * found["sent_bytes"] / bus, 1e3 * found["cpu_products"] / products
    yield (
        f"  at {bus / 1e9:.0f} GB/s that takes {sending:.1f} ms, and a CPU of {products:.0e} products a second takes "
        f"{a_token:.2f} ms a token for the same; a run measures both"
    )


def card_lines(card: Report) -> Iterator[str]:
    """What a card would take, by arithmetic."""
    token, prompt, n = card["token_seconds"], card["prompt_seconds"], card["prompt_tokens"]
    yield (
        f"a token: {1e3 * token:.1f} ms, {1 / token:.0f} tokens/s; of it {1e3 * card['memory_seconds']:.1f} ms "
        f"for the card's memory at its full speed, {1e3 * card['waits_seconds']:.1f} ms of waiting for the CPU, "
        f"and {card['launches']} launches"
    )
    beside = {"the CPU": card["prompt_host_seconds"], "the bus": card["prompt_bus_seconds"]}
    beside = card["prompt_units"] | beside
    parts = ", ".join(f"{1e3 * seconds:.1f} by {what}" for what, seconds in beside.items() if seconds)
    yield f"a prompt of {n} tokens: {1e3 * prompt:.1f} ms, {n / prompt:.0f} tokens/s; ms of each: {parts}"
