"""Tables of several budgets, and of what a run measured beside its plan."""

from typing import Any

from rich.table import Table


def sweep_table(rows: list[dict[str, Any]]) -> Table:
    """A row a budget."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    titles = ("budget", "dense", "hot", "covers", "CPU MiB", "GPU MiB", "bus KiB", "ms (estimate)")
    for title in titles:
        table.add_column(title, justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(row["budget"], "does not fit")
            continue
        table.add_row(
            row["budget"],
            f"{row['dense_layers']}/{row['n_layer']}",
            f"{row['hot_share']:.1%}",
            f"{row['coverage']:.1%}",
            f"{row['host_bytes'] / (1 << 20):.1f}",
            f"{row['device_bytes'] / (1 << 20):.1f}",
            f"{row['bus_bytes'] / 1024:.1f}",
            f"{row['seconds'] * 1000:.2f}",
        )
    return table


def run_table(rows: list[dict[str, Any]]) -> Table:
    """Planned beside measured, a row a figure."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("")
    table.add_column("planned", justify="right")
    table.add_column("measured", justify="right")
    for row in rows:
        table.add_row(row["name"], *(_figure(row[kind], row["unit"]) for kind in ("planned", "measured")))
    return table


def _figure(value: float | None, unit: str) -> str:
    """A number with its unit; a dash for none."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{value:.1%}"
    if unit == "s":
        return f"{value * 1000:.3g} ms"
    if unit == "bytes/s":
        return f"{value / 1e9:.2f} GB/s"
    return f"{value:,.0f} {unit}".rstrip() if value == round(value) else f"{value:,.1f} {unit}".rstrip()
