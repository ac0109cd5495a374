"""Kernels that exist once a weight type: compiled when one is first wanted, and called through a table.

A model has two or three types of the many that there are, so only theirs are compiled. Callers find the table
of addresses by its symbol, and read the one of a type's number at run time.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types

from hotcold.kernels.cpu.compiled import compiled_code
from hotcold.kernels.cpu.simd import I64, Builder, Value, operation
from hotcold.kernels.cpu.weights import WeightType

MOST = 64  # numbers of a table: GGUF's type numbers lie below


def emitted(*_: int) -> None:
    """What stands in a template for the code of a variant."""
    raise NotImplementedError


class Variants:
    """One kernel's variants by their numbers, such as weight types.

    Attributes:
        emits: emit(builder, *arguments) of each number.
        call: calls a variant from compiled code: its number, then the arguments, int64 each. It has to be
            prepared by then.
    """

    def __init__(
        self, template: Callable[..., None], emits: Mapping[int, tuple[str, Callable[..., None]]]
    ) -> None:
        """Name the variants; none is compiled before it is prepared.

        Args:
            template: a function at module level that calls `emitted` with its arguments; what its compiled
                copies are named after and kept by.
            emits: name and code of each number.
        """
        self._template, self.emits = template, emits
        self._n = template.__code__.co_argcount
        self._table = np.zeros(MOST, np.int64)
        self._kept: list[Any] = []
        self._symbol = f"hotcold_{template.__name__.strip('_')}"
        llvmlite.binding.add_symbol(self._symbol, self._table.ctypes.data)
        self.call = self._caller()

    def _caller(self) -> Any:
        def emit(b: Builder, number: Value, *values: Value) -> None:
            table = b.module.globals.get(self._symbol)
            if table is None:
                table = ir.GlobalVariable(b.module, ir.ArrayType(I64, MOST), self._symbol)
            kind = ir.FunctionType(ir.VoidType(), [I64] * self._n)
            b.call(b.inttoptr(b.load(b.gep(table, [I64(0), number])), kind.as_pointer()), values)

        emit.__name__, emit.__doc__ = self._symbol, self._template.__doc__
        return operation(types.void, *[types.int64] * (1 + self._n))(emit)

    def is_ready(self, number: int) -> bool:
        """Whether a variant may be called."""
        return bool(self._table[number])

    def prepare(self, number: int) -> None:
        """Compile a variant, or load it from the disk cache, unless that is done; nothing for a number without."""
        if number not in self.emits or self.is_ready(number):
            return
        name, emit_code = self.emits[number]

        def emit(b: Builder, *arguments: Value) -> None:
            emit_code(b, *arguments)

        arguments = [types.int64] * self._n
        scope = {**self._template.__globals__, emitted.__name__: operation(types.void, *arguments)(emit)}
        function = FunctionType(self._template.__code__, scope, f"{self._template.__name__}_{name}")
        function.__qualname__, function.__module__ = function.__name__, self._template.__module__
        code = compiled_code(types.void(*arguments))(function)
        self._kept.append(code)
        self._table[number] = code.address


def variants_of(
    template: Callable[..., None], kinds: Iterable[WeightType], emit: Callable[..., None]
) -> Variants:
    """A kernel of each of some weight types; emit(builder, kind, *arguments)."""
    return Variants(template, {kind.type_id: (kind.name, partial(_emit_for, emit, kind)) for kind in kinds})


def _emit_for(emit: Callable[..., None], kind: WeightType, b: Builder, *arguments: Value) -> None:
    emit(b, kind, *arguments)
