"""The table of block types in docs/models.md, from the tables in the code.

python bench/type_table.py            prints it
python bench/type_table.py --write    puts it into docs/models.md
"""

import argparse
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.engine.plan.footprint import type_obstacle
from hotcold.gguf_io.outtypes import OUTTYPES
from hotcold.kernels.cpu.weight_types import BY_ID
from hotcold.kernels.weight_table import WEIGHT_TYPES, device_row_bytes

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- block types: begin -->\n", "<!-- block types: end -->\n"
ROW = 4096
HEADS = (
    "type",
    "block",
    "bits a weight",
    "input",
    "CPU",
    "device",
    f"bytes of a row of {ROW} there",
    "`convert` writes it",
)


def table() -> str:
    """The table in Markdown."""
    rows = [HEADS, ("---", *["---:"] * 2, *["---"] * 3, "---:", "---"), *map(_row, WEIGHT_TYPES)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(kind: GGMLQuantizationType) -> tuple[str, ...]:
    block, n_bytes = GGML_QUANT_SIZES[kind]
    written = any(kind == outtype for outtype, _ in OUTTYPES.values())
    return (
        kind.name,
        str(block),
        f"{8 * n_bytes / block:g}",
        "int8" if WEIGHT_TYPES[kind].is_quantised else "float32",
        _yes(int(kind) in BY_ID),
        _yes(type_obstacle(kind) is None),
        str(device_row_bytes(kind, ROW)),
        _yes(written),
    )


def _yes(so: bool) -> str:
    return "yes" if so else ""


def put_into(page: str, text: str) -> str:
    """The page with the text between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + text + END + rest.split(END)[1]


def main() -> None:
    """Print the table, or write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/models.md")
    if parser.parse_args().write:
        PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
