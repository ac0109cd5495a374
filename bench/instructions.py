"""What the inner loops of the device's kernels are made of, read from their machine code; no card is needed.

pip install nvidia-cuda-nvdisasm          the disassembler
python bench/instructions.py              prints the table
python bench/instructions.py --write      puts it into docs/device.md
python bench/instructions.py matvec_q6_K  of other kernels
"""

import argparse
import shutil
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from compile_check import put_into
from machine_code import Loop, disassemble, hot_loop, kernels

from hotcold.kernels.cuda.device.nvrtc import Target, load_nvrtc
from hotcold.kernels.cuda.device.occupancy import MULTIPROCESSORS
from hotcold.kernels.cuda.device.units import Unit, unit_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "device.md"
MARKS = "<!-- instructions: begin -->\n", "<!-- instructions: end -->\n"
KERNELS = (
    *(f"matvec_{ending}" for ending in ("f16", "q8_0", "q4_0", "q4_K", "q6_K", "mxfp4")),
    *(f"matvec_mask_{ending}" for ending in ("f16", "q4_0")),
    *(f"sparse_gated_ffn_{ending}" for ending in ("f16", "q4_0")),
    *(f"matmul_{ending}" for ending in ("f16", "q8_0", "q4_0")),
    *(f"matmul_few_{ending}" for ending in ("q8_0", "q4_0")),
    *(f"matmul_transposed_{ending}" for ending in ("f16", "q4_0")),
)


def find_nvdisasm() -> str:
    """The disassembler: of NVIDIA's wheel, else on the PATH.

    Raises:
        SystemExit: there is none.
    """
    try:
        found = [file.locate() for file in files("nvidia-cuda-nvdisasm") or () if file.name == "nvdisasm"]
    except PackageNotFoundError:
        found = []
    path = str(found[0]) if found else shutil.which("nvdisasm")
    if path is None:
        sys.exit("nvdisasm: not found; pip install nvidia-cuda-nvdisasm")
    return path


@cache
def _of_unit(unit: Unit, architecture: int, nvdisasm: str) -> dict[str, list[str]]:
    return kernels(disassemble(load_nvrtc().compile(unit.source, Target(architecture)).code, nvdisasm))


def loop_of(kernel: str, architecture: int, nvdisasm: str) -> Loop | None:
    """The hot loop of a kernel on an architecture."""
    unit = unit_of(kernel)
    if unit is None:
        sys.exit(f"{kernel}: no such kernel; docs/kernels.md names them")
    return hot_loop(_of_unit(unit, architecture, nvdisasm)[kernel])


def table(names: tuple[str, ...], nvdisasm: str) -> str:
    """The table in Markdown: instructions a pass, of them products and loads."""
    rows = [["kernel", *(f"sm_{a}" for a in MULTIPROCESSORS)], ["---", *["---:"] * len(MULTIPROCESSORS)]]
    for name in names:
        rows.append([f"`{name}`", *(_cell(loop_of(name, a, nvdisasm)) for a in MULTIPROCESSORS)])
    version = ".".join(map(str, load_nvrtc().version))
    head = f"NVRTC {version}. Instructions a pass of the innermost loop with the most products: of them products (one IDP\n"
    head += "is four, one IMMA or HMMA a tile of 16 by 8) + loads of 16 bytes from the card's memory + other loads; in brackets, how many loads of 16 bytes\n"
    head += "are issued before the first is waited for."
    return head + "\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cell(loop: Loop | None) -> str:
    if loop is None:
        return "unrolled"
    return f"{loop.length}: {loop.products} + {loop.wide_loads} + {loop.other_loads} ({loop.under_way})"


def main() -> None:
    """Print the table, or write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kernels", nargs="*", default=KERNELS, help="names; the usual ones if left out")
    parser.add_argument("--write", action="store_true", help="put the table into docs/device.md")
    chosen = parser.parse_args()
    text = table(tuple(chosen.kernels), find_nvdisasm())
    if chosen.write:
        PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8"), text, *MARKS), encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
