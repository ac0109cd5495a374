"""Compile every kernel for six architectures, without a driver, and show what it needs.

python bench/compile_check.py            prints the table
python bench/compile_check.py --write    puts it into docs/performance.md
"""

import argparse
from pathlib import Path

from hotcold.kernels.cuda.device.nvrtc import Resources, Target, load_nvrtc, read_resources
from hotcold.kernels.cuda.device.occupancy import MULTIPROCESSORS, occupancy
from hotcold.kernels.cuda.device.sources import program
from hotcold.kernels.cuda.work import BLOCK

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- compile check: begin -->\n", "<!-- compile check: end -->\n"


def measure() -> dict[str, dict[int, Resources]]:
    """What each kernel needs on each architecture."""
    needs: dict[str, dict[int, Resources]] = {}
    for architecture in MULTIPROCESSORS:
        log = load_nvrtc().compile(program(), Target(architecture), ("--ptxas-options=-v",)).log
        for kernel, resources in read_resources(log).items():
            needs.setdefault(kernel, {})[architecture] = resources
    return dict(sorted(needs.items()))


def table(needs: dict[str, dict[int, Resources]]) -> str:
    """The table in Markdown: registers a thread and, in brackets, occupancy in percent."""
    version = ".".join(map(str, load_nvrtc().version))
    spilled = sum(r.spilled for by_architecture in needs.values() for r in by_architecture.values())
    heads = ["kernel", *(f"sm_{a}" for a in MULTIPROCESSORS), "static shared"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for kernel, found in needs.items():
        cells = [f"{r.registers} ({100 * occupancy(a, r, BLOCK):.0f} %)" for a, r in found.items()]
        rows.append([f"`{kernel}`", *cells, f"{max(r.shared for r in found.values())} B"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    head = f"NVRTC {version}, blocks of {BLOCK} threads; bytes spilled by all kernels together: {spilled}."
    return head + "\n\n" + "\n".join(lines) + "\n"


def put_into(page: str, text: str) -> str:
    """The page with the text between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + text + END + rest.split(END)[1]


def main() -> None:
    """Print the table, or write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    text = table(measure())
    if parser.parse_args().write:
        PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
