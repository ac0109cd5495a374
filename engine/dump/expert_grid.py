"""Experts as a grid on the page: a row a layer, its experts from hot to cold, each coloured by where it lies."""

from collections.abc import Iterator

import numpy as np

from hotcold.engine.dump.report import Report
from hotcold.engine.dump.svg import WIDTH, rect, svg, text

LEFT, STEP = 30, 13
FAINTEST = 0.25  # opacity of an expert that is never chosen

KEY = (
    "<p class=faint>A row a layer, experts from hot to cold; the hotter, the stronger the colour. "
    "<span class=key style='background:var(--gpu)'></span>on the GPU "
    "<span class=key style='background:var(--cpu)'></span>on the CPU. "
    "Of an expert whose neurons are divided the lower part is on the GPU.</p>"
)


def expert_grid(report: Report) -> Iterator[str]:
    """A title, the key and the picture; nothing without experts."""
    layers = [row for row in report["layers"] if row["experts"] is not None]
    if not layers:
        return
    yield "<h2>Experts of each layer</h2>"
    yield KEY
    parts = [part for i, row in enumerate(layers) for part in _layer(row, 2 + i * STEP)]
    yield svg(4 + STEP * len(layers), "experts of each layer", parts)


def _layer(row: Report, y: float) -> Iterator[str]:
    """One layer's experts; those of equal counts in the order of their numbers."""
    experts = row["experts"]
    counted, n_each = np.array(experts["counted"]), experts["rows"]
    hottest, wide = counted.max() or 1.0, (WIDTH - LEFT) / counted.size
    yield text(24, y + 9, str(row["layer"]), "end", "faint")
    for place, e in enumerate(np.argsort(-counted, kind="stable").tolist()):
        share, opacity = experts["hot"][e] / n_each, FAINTEST + (1 - FAINTEST) * counted[e] / hottest
        title = (
            f"layer {row['layer']}, expert {e}: {_where(experts['hot'][e], n_each)}, counted {counted[e]:g}"
        )
        x, width, height = LEFT + place * wide, wide - min(0.6, wide / 5), STEP - 2
        if share < 1:
            yield rect(x, y, width, height * (1 - share), "cpu", title, opacity)
        if share > 0:
            yield rect(x, y + height * (1 - share), width, height * share, "gpu", title, opacity)


def _where(n_hot: int, n_each: int) -> str:
    if n_hot in (0, n_each):
        return "on the GPU" if n_hot else "on the CPU"
    return f"{n_hot} of {n_each} neurons on the GPU"
