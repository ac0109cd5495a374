"""The pieces that pictures of the page are made of."""

from collections.abc import Iterable
from html import escape

WIDTH = 400
"""Units of a picture's width."""


def svg(height: float, label: str, parts: Iterable[str]) -> str:
    """A picture of so many units of height."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def rect(x: float, y: float, width: float, height: float, kind: str, title: str, opacity: float = 1.0) -> str:
    """A box with a title.

    Args:
        kind: a class of the page, or a variable of its colours.
    """
    fill = f'class="{kind}"' if not kind.startswith("--") else f'style="fill:var({kind})"'
    box = f'x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.3):.2f}" height="{max(height, 0.3):.2f}"'
    faded = "" if opacity == 1 else f' fill-opacity="{opacity:.2f}"'
    return f"<rect {box} {fill}{faded}><title>{escape(title)}</title></rect>"


def text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    """Words, anchored at their start, middle or end."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line of the axes."""
    return f'<line class="axis" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'
