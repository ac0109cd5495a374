"""The offload dump as one page: no scripts, nothing fetched, pictures as inline SVG.

Pictures are 400 units wide, so that their words can be read at the width of a phone.
"""

from collections.abc import Sequence
from html import escape

from hotcold.engine.dump.expert_grid import expert_grid
from hotcold.engine.dump.report import Report
from hotcold.engine.dump.svg import WIDTH, line, rect, svg, text
from hotcold.engine.dump.text import SELDOM, TOTALS, short_form
from hotcold.engine.plan.budget import mib

STYLE = """
:root{--ink:#1b1f24;--paper:#fff;--faint:#6b7280;--line:#d7dce2;--gpu:#c2410c;--cpu:#1d6fb8;--copy:#7c3aed;
--c0:#c2410c;--c1:#a16207;--c2:#15803d;--c3:#dc2626;--c4:#0e7490;--c5:#57534e;--c6:#6d28d9;--c7:#be185d;
--c8:#64748b;--c9:#94a3b8;--c10:#cbd5e1;--ground:#cbd5e1}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--paper:#14171b;--faint:#9aa3ad;--line:#343a42;
--gpu:#fb923c;--cpu:#60a5fa;--copy:#c4b5fd;--c0:#fb923c;--c1:#facc15;--c2:#4ade80;--c3:#f87171;--c4:#22d3ee;
--c5:#d6d3d1;--c6:#a78bfa;--c7:#f472b6;--c8:#94a3b8;--c9:#64748b;--c10:#3b424c;--ground:#3b424c}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:46rem;color:var(--ink);background:var(--paper);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2.2rem}h3{font-size:1rem}
svg{width:100%;height:auto;display:block}svg text{font:10px system-ui,sans-serif;fill:var(--ink)}
svg .faint{fill:var(--faint)}svg .axis{stroke:var(--line)}
.gpu{fill:var(--gpu)}.cpu{fill:var(--cpu)}.copy{fill:var(--copy)}
table{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .4rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.n,.w{white-space:nowrap}.n{text-align:right}.scroll{overflow-x:auto}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:2px}
p{margin:.4rem 0}.faint{color:var(--faint)}
"""


ARENA_KEY = (
    "<p class=faint>Each bar lasts from the step that makes a result to the last that reads it, at its bytes "
    "in the arena. <span class=key style='background:var(--gpu)'></span>made on the GPU "
    "<span class=key style='background:var(--cpu)'></span>made on the CPU "
    "<span class=key style='background:var(--copy)'></span>came over the bus</p>"
)


def page(report: Report, curve: Sequence[tuple[int, float]]) -> str:
    """The whole page.

    Args:
        curve: budgets in bytes, ascending, and the share of firings that each covers.
    """
    name = escape(report["model"]["name"])
    parts = [
        f"<h1>Where {name} goes</h1>",
        *(f"<p>{escape(line)}</p>" for line in (*short_form(report), *report["notes"])),
        "<h2>The device's memory</h2>",
        memory_map(report),
        "<h2>Hot rows of each layer</h2>",
        f"<p class=faint>Activation counts: {escape(report['frequencies_from'])}</p>",
        hot_rows(report),
        *expert_grid(report),
        "<h2>Activations covered by a budget</h2>",
        coverage(report, curve),
        "<h2>Intermediates of one decoded token</h2>",
        ARENA_KEY,
        arenas(report, "decode"),
        f"<h2>Intermediates of a batch of {report['settings']['n_batch']} tokens</h2>",
        arenas(report, "batch"),
        "<h2>Weights</h2>",
        weights(report),
    ]
    return document(f"{name}: offload dump", parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page of these parts; the title is escaped already."""
    return (
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def memory_map(report: Report) -> str:
    """Each card's budget as one bar, and its parts in a table."""
    cards = report["totals"]["cards"]
    if not report["totals"]["gpu"]["budget"]:
        return "<p>Nothing is allocated on a device.</p>"
    if len(cards) == 1:
        return _card_map(cards[0])
    return "".join(f"<h3>{escape(card['name'])}</h3>{_card_map(card)}" for card in cards)


def _card_map(gpu: Report) -> str:
    parts, rows, x = [], [], 0.0
    for i, (key, title) in enumerate(TOTALS.items()):
        width = WIDTH * gpu[key] / gpu["budget"]
        if key in SELDOM and not gpu[key]:
            continue
        if gpu[key]:
            parts.append(rect(x, 0, width, 36, f"--c{i}", f"{title}: {gpu[key]} bytes"))
        x += width
        swatch = f'<span class=key style="background:var(--c{i})"></span>'
        rows.append(f"<tr><td>{swatch}{title}<td class=n>{gpu[key]}<td class=n>{mib(gpu[key])}")
    rows.append(f"<tr><th>budget<th class=n>{gpu['budget']}<th class=n>{mib(gpu['budget'])}")
    return svg(36, "map of the device's memory", parts) + f"<table>{''.join(rows)}</table>"


def hot_rows(report: Report) -> str:
    """A bar a layer: the share of hot rows, and a mark for the share of firings covered."""
    layers, step = report["layers"], 13
    parts = [text(30, 9, "hot rows", kind="faint"), text(WIDTH - 44, 9, "hot / covers", "middle", "faint")]
    left, right = 30, WIDTH - 92
    for i, row in enumerate(layers):
        y = 14 + i * step
        title = (
            f"layer {row['layer']}: gpu_bucket {row['gpu_bucket'][0]} of {row['gpu_idx'][0]}, {row['why']}"
        )
        parts.append(text(24, y + 9, str(row["layer"]), "end", "faint"))
        parts.append(rect(left, y + 1, right - left, step - 3, "--ground", title))
        parts.append(rect(left, y + 1, (right - left) * row["hot_share"], step - 3, "gpu", title))
        parts.append(text(WIDTH - 2, y + 9, f"{row['hot_share']:.1%} / {row['coverage']:.1%}", "end"))
    return svg(18 + step * len(layers), "hot rows of each layer", parts)


def coverage(report: Report, curve: Sequence[tuple[int, float]]) -> str:
    """The curve, and a mark at the budget; of one card, since several spend theirs each on their own layers."""
    if len(report["totals"]["cards"]) > 1:
        return "<p>Each card spends its budget on its own layers: no curve shows what all of them cover.</p>"
    if not curve:
        return "<p>Whole FFNs are placed: the file has no row a neuron of the down projection.</p>"
    here, covered = report["totals"]["gpu"]["budget"], report["totals"]["coverage"]
    left, right, top, bottom = 34.0, WIDTH - 8.0, 8.0, 150.0
    largest = max(curve[-1][0] * 1.02, 1)

    def at(n_bytes: float, share: float) -> tuple[float, float]:
        return left + (right - left) * min(n_bytes / largest, 1.0), bottom - (bottom - top) * share

    parts = [line(left, at(0, s)[1], right, at(0, s)[1]) for s in (0, 0.25, 0.5, 0.75, 1)]
    parts += [text(left - 4, at(0, s)[1] + 3, f"{s:.0%}", "end", "faint") for s in (0, 0.5, 1)]
    points = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in [(0, 0.0), (curve[0][0], 0.0), *curve])
    parts.append(f'<polyline points="{points}" fill="none" style="stroke:var(--gpu)" stroke-width="2"/>')
    x, y = at(here, covered)
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="cpu"><title>this budget</title></circle>')
    for share in (0, 0.5, 1):
        place = left + (right - left) * share
        anchor = {0: "start", 0.5: "middle", 1: "end"}[share]
        parts.append(text(place, bottom + 14, mib(largest * share), anchor, "faint"))
    said = f"<p class=faint>The dot is this budget: {covered:.1%} covered. Beyond the curve's end all neurons fit.</p>"
    return svg(bottom + 20, "coverage against budget", parts) + said


def arenas(report: Report, graph: str) -> str:
    """Each side's arena: bars over steps, at their offsets."""
    rows, sides = report["intermediates"][graph], report["arenas"][graph]
    n_steps = max((row["step"] for row in rows), default=0) + 1
    pictures = []
    for side, arena in sides.items():
        if not arena["bytes"]:
            continue
        text = (
            f"{side.upper()}: {arena['bytes']} bytes; most in step {arena['peak_step']}, {arena['peak_node']}"
        )
        pictures.append(f"<p>{escape(text)}</p>" + _arena(rows, side, arena["bytes"], n_steps))
    return "".join(pictures)


def _arena(rows: list[Report], side: str, n_bytes: int, n_steps: int) -> str:
    left, height = 0.0, 110.0
    wide = (WIDTH - left) / n_steps
    parts = [line(left, height, WIDTH, height)]
    for row in rows:
        if row["device"] != side or row["offset"] is None:
            continue
        x = left + wide * row["first_step"]
        y, tall = height * row["offset"] / n_bytes, height * row["arena_bytes"] / n_bytes
        steps = f"steps {row['first_step']} to {row['last_step']}"
        title = f"{row['name']}: {row['bytes']} bytes at {row['offset']}, {steps}"
        kind = "copy" if row["crosses_bus"] else "cpu" if side == "cpu" else "gpu"
        gap = min(0.6, wide / 4)
        parts.append(
            rect(x, y, wide * (row["last_step"] - row["first_step"] + 1) - gap, tall - 0.6, kind, title)
        )
    parts.append(text(0, height + 12, "step 0", kind="faint"))
    parts.append(text(WIDTH, height + 12, f"step {n_steps - 1}", "end", "faint"))
    return svg(height + 16, f"arena of the {side}", parts)


def weights(report: Report) -> str:
    """All weights."""
    rows = []
    for row in report["weights"]:
        ne = ", ".join(map(str, row["ne"]))
        side = row["device"] if row["device"] != "split" else f"split {row['device_rows']}/{row['rows']}"
        rows.append(
            f"<tr><td>{escape(row['name'])}<br><span class=faint>{escape(row['why'])}</span>"
            f"<td class=w>{row['type']}<br><span class=faint>[{ne}]</span><td class=n>{row['bytes']}<td>{side}"
        )
    head = "<tr><th>name<th>type, ne<th class=n>bytes<th class=w>device"
    return f"<div class=scroll><table>{head}{''.join(rows)}</table></div>"
