"""A kernel's machine code as nvdisasm prints it: its instructions, its loops, and what they are made of."""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SECTION = re.compile(r"^\.text\.(\w+):")
LABEL = re.compile(r"^(\.L_x_\d+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
REGISTER = re.compile(r"\bR(\d+)")
DOT_PRODUCTS = ("IDP", "FFMA", "HFMA2", "IMMA", "HMMA")
FROM_MEMORY = ("LDG", "LDS", "LDSM", "LDC", "LD")


@dataclass(frozen=True)
class Instruction:
    """One of them: `opcode` with its suffixes, `operands` as they are printed."""

    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without suffixes."""
        return self.opcode.split(".")[0]

    @property
    def is_wide_load(self) -> bool:
        """16 bytes from the card's memory."""
        return self.name == "LDG" and ".128" in self.opcode

    @property
    def loaded(self) -> set[int]:
        """The registers that a load of 16 bytes fills."""
        first = REGISTER.match(self.operands)
        return set(range(int(first[1]), int(first[1]) + 4)) if first else set()

    @property
    def read(self) -> set[int]:
        """The registers that are named behind the first operand."""
        return {int(number) for number in REGISTER.findall(self.operands.partition(",")[2])}


@dataclass(frozen=True)
class Loop:
    """What an innermost loop is made of.

    Attributes:
        length: instructions a pass.
        products: of them multiply and add: FFMA, HFMA2, IDP (four products), IMMA and HMMA (a tile of 16 by 8).
        wide_loads: of them load 16 bytes from the card's memory.
        other_loads: of them load less, or from shared or constant memory.
        under_way: loads of 16 bytes that are issued before one of them is first waited for.
    """

    length: int
    products: int
    wide_loads: int
    other_loads: int
    under_way: int


def disassemble(code: bytes, nvdisasm: str) -> str:
    """The text of a cubin.

    Raises:
        OSError: the program cannot be started.
        subprocess.CalledProcessError: it does not take the code.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(code)
        return subprocess.run([nvdisasm, "-c", str(path)], check=True, capture_output=True, text=True).stdout


def kernels(text: str) -> dict[str, list[str]]:
    """The lines of each kernel's section."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if head := SECTION.match(line):
            lines = found.setdefault(head[1], [])
        lines.append(line)
    return found


def hot_loop(lines: Sequence[str]) -> Loop | None:
    """The innermost loop with the most products, the shorter of equals; None where no loop multiplies."""
    loops = (made_of(body) for body in innermost_loops(lines))
    multiplying = [loop for loop in loops if loop.products]
    return max(multiplying, key=lambda loop: (loop.products, -loop.length), default=None)


def innermost_loops(lines: Sequence[str]) -> Iterator[list[Instruction]]:
    """The body of each loop that has no other within: from a label to the last branch back to it."""
    labels: dict[str, int] = {}
    code: list[Instruction] = []
    spans: dict[int, int] = {}
    for line in lines:
        if label := LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := INSTRUCTION.search(line):
            code.append(Instruction(found[1], found[2]))
            target = TARGET.search(found[2])
            if (
                code[-1].name == "BRA"
                and target
                and target[1] in labels
                and labels[target[1]] < len(code) - 1
            ):
                spans[labels[target[1]]] = len(code)
    for start, end in spans.items():
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in spans.items()):
            yield code[start:end]


def made_of(body: Sequence[Instruction]) -> Loop:
    """The counts of a loop."""
    wide = sum(i.is_wide_load for i in body)
    other = sum(i.name in FROM_MEMORY for i in body) - wide
    products = sum(i.name in DOT_PRODUCTS for i in body)
    return Loop(len(body), products, wide, other, _under_way(body))


def _under_way(body: Sequence[Instruction]) -> int:
    pending: set[int] = set()
    count = 0
    for instruction in body:
        if pending & instruction.read:
            break
        if instruction.is_wide_load:
            pending |= instruction.loaded
            count += 1
    return count
