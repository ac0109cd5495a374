"""Which kernels are compiled together: when one of them is first launched.

A unit is all kernels without types of weights; all kernels of one type; or one family's kernels for matrices of
two or three types. A model needs a handful of units, and nobody waits for the others.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hotcold.kernels.cuda.device.signatures import Signature, read_signatures
from hotcold.kernels.cuda.device.sources import Types, families, program, typed_families
from hotcold.kernels.weight_table import WEIGHT_TYPES

ENDINGS = tuple(row.ending for row in WEIGHT_TYPES.values())
TYPED_KERNEL = re.compile(rf"(\w+?)((?:_(?:{'|'.join(ENDINGS)}))+)")


@dataclass(frozen=True)
class Unit:
    """Files, and the types that their kernels are made for."""

    paths: tuple[Path, ...]
    types: tuple[Types, ...] = ()

    @property
    def source(self) -> str:
        """The program."""
        return _source(self)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Its kernels."""
        return _signatures(self)


@cache
def _source(unit: Unit) -> str:
    return program(*unit.paths, types=unit.types)


@cache
def _signatures(unit: Unit) -> Mapping[str, Signature]:
    return read_signatures(unit.source)


@cache
def untyped() -> Unit:
    """The kernels that multiply no weights."""
    return Unit(tuple(path for path in families() if path not in typed_families()))


@cache
def of_type(ending: str) -> Unit:
    """The kernels that multiply weights of one type."""
    return Unit(typed_families(), ((ending,),))


@cache
def _family_paths() -> dict[str, Path]:
    """The file of each typed kernel, by the kernel's name without its types."""
    types = ((ENDINGS[0],),)
    found = ((path, read_signatures(program(path, types=types))) for path in typed_families())
    return {kernel.removesuffix(f"_{ENDINGS[0]}"): path for path, kernels in found for kernel in kernels}


def family_of(kernel: str) -> str:
    """A typed kernel's name without its types."""
    named = TYPED_KERNEL.fullmatch(kernel)
    return named[1] if named else kernel


@cache
def unit_of(kernel: str) -> Unit | None:
    """The unit that a kernel is in; None if there is no such kernel."""
    if kernel in untyped().signatures:
        return untyped()
    named = TYPED_KERNEL.fullmatch(kernel)
    path = _family_paths().get(named[1]) if named else None
    if named is None or path is None:
        return None
    types = tuple(re.findall(rf"_({'|'.join(ENDINGS)})(?=_|$)", named[2]))
    unit = of_type(types[0]) if len(types) == 1 else Unit((path,), (types,))
    return unit if kernel in unit.signatures else None


class Kernels(Mapping[str, Signature]):
    """All kernels by name, read when they are looked up.

    One walks through those without types and those of a single one; those of several are found by name.
    """

    def __getitem__(self, kernel: str) -> Signature:
        """Its signature."""
        unit = unit_of(kernel)
        if unit is None:
            raise KeyError(kernel)
        return unit.signatures[kernel]

    def __iter__(self) -> Iterator[str]:
        """Names."""
        for unit in all_units():
            yield from unit.signatures

    def __len__(self) -> int:
        """How many there are of those that one walks through."""
        return sum(len(unit.signatures) for unit in all_units())


def all_units() -> tuple[Unit, ...]:
    """The kernels without types, and those of each type."""
    return untyped(), *map(of_type, ENDINGS)
