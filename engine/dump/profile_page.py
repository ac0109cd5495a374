"""A profile as one page: no scripts, nothing fetched, pictures as inline SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hotcold.engine.dump.html import document
from hotcold.engine.dump.svg import WIDTH, line, rect, svg, text

Figures = Mapping[str, Any]
"""What `hotcold profile --json` prints."""


def page(figures: Figures) -> str:
    """The whole page."""
    name = escape(figures["model"] or "two profiles together")
    n_tokens, chunks = figures["n_tokens"], f"{figures['n_chunks']} of {figures['all_chunks']} chunks"
    parts = [
        f"<h1>Which neurons of {name} work</h1>",
        f"<p>{n_tokens} tokens, {chunks}.</p>",
        *_by_layer(figures),
        "<h2>What the hottest hold</h2>",
        covered(figures),
        *_held(figures),
        *_stable(figures),
        "<h2>What a budget brings</h2>",
        (
            "<p>A device of which a share of the neurons fits serves what these hold, and the CPU reads the rest: "
            "<code>hotcold offload-dump --activation DIR --sweep 2GiB,4GiB,8GiB</code> works it out in bytes.</p>"
        ),
    ]
    return document(f"{name}: profile", parts)


def _by_layer(figures: Figures) -> list[str]:
    if figures["firing"] is None:
        said = (
            "No neuron is ever idle, so a token reads every row, wherever it lies. Counted is how much each matters. "
            "<code>hotcold calibrate</code> measures what leaving out those that add little costs."
        )
        return [
            f"<p>{said}</p>",
            "<h2>Half of what all add</h2>",
            bars(figures["half_by"], "neurons have half"),
        ]
    return ["<h2>Firing on a token</h2>", bars(figures["firing"], "fire")]


def bars(shares: Sequence[float], what: str) -> str:
    """A bar a layer, from none to all neurons."""
    step, left, right = 13, 30, WIDTH - 52
    parts = [text(left, 9, "layer by layer, of all neurons", kind="faint")]
    for i, share in enumerate(shares):
        y, title = 14 + i * step, f"layer {i}: {share:.1%} of the neurons {what}"
        parts.append(text(24, y + 9, str(i), "end", "faint"))
        parts.append(rect(left, y + 1, right - left, step - 3, "--ground", title))
        parts.append(rect(left, y + 1, (right - left) * share, step - 3, "gpu", title))
        parts.append(text(WIDTH - 2, y + 9, f"{share:.1%}", "end"))
    return svg(18 + step * len(shares), f"neurons that {what}", parts)


def covered(figures: Figures) -> str:
    """The curve of a fixed set, and of the followed tokens also that of a cache of the last used."""
    left, right, top, bottom = 34.0, WIDTH - 8.0, 8.0, 150.0

    def at(share: float, part: float) -> str:
        return f"{left + (right - left) * share:.1f},{bottom - (bottom - top) * part:.1f}"

    def curve(points: Sequence[tuple[float, float]], colour: str) -> str:
        drawn = " ".join(at(*point) for point in [(0.0, 0.0), *points, (1.0, 1.0)])
        return f'<polyline points="{drawn}" fill="none" style="stroke:var({colour})" stroke-width="2"/>'

    levels = (0, 0.25, 0.5, 0.75, 1)
    parts = [line(left, bottom - (bottom - top) * s, right, bottom - (bottom - top) * s) for s in levels]
    parts += [
        text(left - 4, bottom - (bottom - top) * s + 3, f"{s:.0%}", "end", "faint") for s in (0, 0.5, 1)
    ]
    parts += [
        text(left + (right - left) * s, bottom + 14, f"{s:.0%}", "middle", "faint") for s in (0.25, 0.5, 0.75)
    ]
    parts.append(curve([(each["share"], each["covered"]) for each in figures["covered"]], "--gpu"))
    if figures["held"]:
        parts.append(curve([(each["share"], each["recent"]) for each in figures["held"]], "--cpu"))
    return svg(bottom + 20, "firings held by the share of neurons", parts)


def _held(figures: Figures) -> list[str]:
    key = "<span class=key style='background:var(--gpu)'></span>the hottest, a fixed set"
    if not figures["held"]:
        return [f"<p class=faint>{key}; across: the share of all neurons</p>"]
    key += ", <span class=key style='background:var(--cpu)'></span>a cache of the last used"
    rows = [
        f"<tr><td class=n>{each['share']:.0%}<td class=n>{each['fixed']:.1%}<td class=n>{each['recent']:.1%}"
        for each in figures["held"]
    ]
    head = "<tr><th class=n>neurons<th class=n>fixed set<th class=n>last used"
    said = f"Of the first {figures['n_followed']} tokens, followed one by one, a set and a cache of so many neurons hold:"
    return [
        f"<p class=faint>{key}; across: the share of all neurons</p>",
        f"<p>{said}</p><table>{head}{''.join(rows)}</table>",
    ]


def _stable(figures: Figures) -> list[str]:
    halves = figures["second_half"]
    if halves is None:
        return []
    said = (
        f"Of what the second half of the texts fires, the first half's hottest fifth holds {halves['by_first_half']:.1%}, "
        f"its own {halves['by_its_own']:.1%}. If they are far apart, count on more text."
    )
    return ["<h2>Is the set stable?</h2>", f"<p>{said}</p>"]
