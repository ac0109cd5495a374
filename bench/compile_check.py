"""Compile every kernel for six architectures, without a driver, and show what it needs.

python bench/compile_check.py            prints the table
python bench/compile_check.py --write    puts it into docs/performance.md
"""

import argparse
from pathlib import Path

from hotcold.kernels.cuda.device.nvrtc import Resources, Target, load_nvrtc, read_resources
from hotcold.kernels.cuda.device.occupancy import MULTIPROCESSORS, occupancy
from hotcold.kernels.cuda.device.units import all_units, family_of
from hotcold.kernels.cuda.work import BLOCK

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- compile check: begin -->\n", "<!-- compile check: end -->\n"


def measure() -> dict[str, dict[int, Resources]]:
    """What each kernel needs on each architecture; those of weights by their family, the most that any type needs."""
    needs: dict[str, dict[int, Resources]] = {}
    for unit in all_units():
        for architecture in MULTIPROCESSORS:
            log = load_nvrtc().compile(unit.source, Target(architecture), ("--ptxas-options=-v",)).log
            for kernel, resources in read_resources(log).items():
                family = needs.setdefault(family_of(kernel) + "_*" if unit.types else kernel, {})
                family[architecture] = _most(family.get(architecture, resources), resources)
    return dict(sorted(needs.items()))


def _most(a: Resources, b: Resources) -> Resources:
    """The larger of each number; spills are added."""
    spilled = a.spilled + b.spilled if a is not b else a.spilled
    return Resources(max(a.registers, b.registers), max(a.shared, b.shared), max(a.stack, b.stack), spilled)


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
    head = f"NVRTC {version}, blocks of {BLOCK} threads; bytes spilled by all kernels together: {spilled}. "
    head += f"`*` stands for the {len(all_units()) - 1} types of weights: what the hungriest of them needs."
    return head + "\n\n" + "\n".join(lines) + "\n"


def put_into(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with the text between its two marks."""
    before, rest = page.split(begin)
    return before + begin + text + end + rest.split(end)[1]


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
