"""The offload dump at a glance: sums, the split, and one layer of each kind in place of all."""

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from hotcold.engine.dump.alike import Kind, bands, kinds, ranges
from hotcold.engine.dump.report import Report
from hotcold.engine.dump.text import (
    INTERMEDIATES_HEAD,
    WEIGHTS_HEAD,
    arena_lines,
    cache_line,
    heading,
    intermediate_line,
    lines,
    paragraphs,
    show_summary,
    show_totals,
    split_table,
    weight_row,
)

MORE = "--full lists every weight and every intermediate, --layer N those of one layer; --json and --html have all"


def show_glance(report: Report, console: Console) -> None:
    """Print what matters of a whole report."""
    show_summary(report, console)
    heading(console, "Outside the layers")
    lines(console, (WEIGHTS_HEAD, *_weights(report, None)))
    for kind in kinds(report):
        _show_kind(report, kind, console)
    heading(console, "FFN split")
    console.print(Text(f"activation counts: {report['frequencies_from']}"))
    console.print(split_table(bands(report)))
    heading(console, "Intermediates")
    for name, what in (("decode", "one token"), ("batch", f"{report['settings']['n_batch']} tokens")):
        paragraphs(console, (f"{what}: {line}" for line in arena_lines(report["arenas"][name])))
    show_totals(report, console)
    console.print()
    paragraphs(console, (MORE,))


def _show_kind(report: Report, kind: Kind, console: Console) -> None:
    n, example = len(kind.layers), kind.example
    alike = f": {n} layers are alike, {ranges(kind.layers)}" if n > 1 else ""
    heading(console, f"Layer {example}{alike}")
    lines(console, (WEIGHTS_HEAD, *_weights(report, example)))
    lines(console, (cache_line(row) for row in report["kv_cache"] if row["layer"] == example))
    paragraphs(console, _reasons(report, example))
    steps = [row for row in report["intermediates"]["decode"] if row["layer"] == example]
    lines(console, (INTERMEDIATES_HEAD, *map(intermediate_line, steps)))
    for layers, difference in kind.others:
        paragraphs(console, (f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}: {difference}",))


def _weights(report: Report, layer: int | None) -> Iterator[str]:
    for row in report["weights"]:
        if row["layer"] == layer:
            yield from weight_row(row)


def _reasons(report: Report, layer: int) -> Iterator[str]:
    """Why the weights and the cache of a layer are where they are, each reason once."""
    rows = [*report["weights"], *report["kv_cache"]]
    yield from dict.fromkeys(row["why"] for row in rows if row["layer"] == layer)
