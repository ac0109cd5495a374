"""How functions of this folder are compiled: to C functions, each into an object file (see `kernel_files.py`).

Numba turns functions to LLVM's code; what it would do next is left out. It would optimise each function, make
machine code of it and wrap it for Python, and then optimise it again within every function that calls it. Here
a kernel and all that it calls are optimised together, once.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba.core import codegen, compiler, dispatcher, fastmathpass, registry, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.cpu_options import FastMathOptions
from numba.core.runtime import rtsys

from hotcold.kernels.cpu.kernel_files import (
    COUNTER,
    N_CELLS,
    OPS,
    Code,
    Family,
    cells,
    cells_symbol,
    load,
    loaded,
    packed_code,
    read,
    symbol_of,
    write,
)
from hotcold.kernels.cpu.program import OP
from hotcold.kernels.cpu.simd import I8, I64, Builder, Value, operation

F = TypeVar("F", bound=Callable[..., Any])

# Sums keep their order (no "reassoc").
FASTMATH = {"contract", "nsz"}
OPTIONS: dict[str, Any] = {"fastmath": FASTMATH, "boundscheck": False, "error_model": "numpy"}

FAMILIES: dict[str, Family] = {OPS: Family({})}
RECIPES: dict[str, Callable[[], Any]] = {}  # of kernels: what gives a module of LLVM with the C function

# what compiled code may call besides kernels: all of it is in the C library
_C_FUNCTIONS = {
    *("sched_yield", "madvise", "syscall", "usleep", "clock_gettime"),
    *("memset", "memcpy", "memmove", "sqrt", "sqrtf"),
}


# ---- functions that kernels are made of -------------------------------------------


class _Library(codegen.AOTCodeLibrary):  # type: ignore[misc]
    """LLVM's code of a function and of what it calls, as it was written."""

    def add_linking_library(self, library: Any) -> None:
        """Note what is called, but for what counts references to Python's objects, which there are none of."""
        if library is not rtsys.library:
            super().add_linking_library(library)

    def add_llvm_module(self, ll_module: Any) -> None:
        """Add code, without a look at it."""
        self._final_module.link_in(ll_module)

    def finalize(self) -> None:
        """Add what is called."""
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    @property
    def module(self) -> Any:
        """All code."""
        self._ensure_finalized()
        return self._final_module


class _Compiler(dispatcher._FunctionCompiler):  # type: ignore[misc, name-defined]
    def _customize_flags(self, flags: Any) -> Any:
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        return flags

    def _compile_core(self, args: Any, return_type: Any) -> Any:
        flags = compiler.Flags()
        self.targetdescr.options.parse_as_flags(flags, self.targetoptions)
        context = self.targetdescr.target_context
        result = compiler.compile_extra(
            self.targetdescr.typing_context,
            context,
            self.py_func,
            args=args,
            return_type=return_type,
            flags=self._customize_flags(flags),
            locals=self.locals,
            library=_Library(context.codegen(), self.py_func.__qualname__),
            pipeline_class=self.pipeline_class,
        )
        context.insert_user_function(result.library, result.fndesc, [result.library])
        return result


class KernelFunction(registry.CPUDispatcher):  # type: ignore[misc]
    """A function that kernels call, compiled within them. Python can call it too, which compiles it anew."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, targetoptions=OPTIONS | {"nopython": True})
        self._compiler = _Compiler(function, self.targetdescr, self.targetoptions, {}, compiler.Compiler)
        self._for_python = numba.njit(**OPTIONS, nogil=True)(function)

    def add_overload(self, cres: Any) -> None:
        """Note what was compiled for some types."""
        self.overloads[tuple(cres.signature.args)] = cres

    def get_overload(self, sig: Any) -> Any:
        """What `insert_user_function` knows it by."""
        return self.overloads[tuple(sig)].library

    def __call__(self, *arguments: Any) -> Any:
        """What Python gets."""
        self._for_python.get_call_template([numba.typeof(argument) for argument in arguments], {})
        for compiled in self._for_python.overloads.values():
            for name in _called(compiled.library._final_module):
                for key, member in FAMILIES[name].members.items():
                    cells(name)[key] = (loaded(member) or load(member, code_of(member))).address
        return self._for_python(*arguments)

    @global_compiler_lock  # type: ignore[untyped-decorator]
    def module(self, kinds: tuple[Any, ...], result: Any, symbol: str) -> Any:
        """LLVM's code with a C function of this symbol, whose arguments are int64."""
        self.compile(kinds)
        compiled = self.overloads[kinds]
        context, module = registry.cpu_target.target_context, compiled.library.module.clone()
        entry = context.codegen()._create_empty_module(symbol)
        returns = context.get_value_type(result) if result != types.void else ir.VoidType()
        function = ir.Function(entry, ir.FunctionType(returns, [I64] * len(kinds)), symbol)
        builder = ir.IRBuilder(function.append_basic_block())
        callee = context.declare_function(entry, compiled.fndesc)
        _, value = context.call_conv.call_function(builder, callee, result, kinds, function.args)
        builder.ret_void() if result == types.void else builder.ret(value)
        module.link_in(codegen.ll.parse_assembly(str(entry)))
        return module


def compiled(function: F) -> F:
    """A function that kernels call; its types are those that it is called with."""
    return KernelFunction(function)


# ---- kernels ------------------------------------------------------------------------


def _recipe(name: str, module: Callable[[], Any]) -> None:
    if name in RECIPES:
        raise AssertionError(f"two kernels are called {name}")
    RECIPES[name] = module


def entry(name: str, n_arguments: int, result: Any = types.void) -> Callable[[Callable[..., Any]], Any]:
    """A decorator for a kernel that Python calls, of int64 arguments (see `machine_code.entry`)."""

    def wrap(function: Callable[..., Any]) -> Any:
        part = KernelFunction(function)
        kinds = (types.int64,) * n_arguments
        _recipe(name, partial(part.module, kinds, result, symbol_of(name)))
        return part

    return wrap


def op_kernel(*codes: int) -> Callable[[Callable[..., None]], Any]:
    """A decorator for the kernel of some ops: kernel(op, c, n, run, scratch) runs n chunks from c on.

    `op` is the address of a record, see `record`; `run` that of the run parameters.
    """

    def wrap(function: Callable[..., None]) -> Any:
        name = f"{OPS}_{function.__name__}"
        FAMILIES[OPS].members.update(dict.fromkeys(codes, name))
        return entry(name, 5)(function)

    return wrap


def family(
    members: Mapping[int, Any], n_arguments: int, always: tuple[int, ...] = ()
) -> Callable[[Callable[..., None]], Any]:
    """A decorator for kernels of a kind: emit(builder, member, *values) writes one, of int64 arguments.

    The result is called from compiled code with the member's number first.

    Args:
        members: what `emit` is given, by number. Those of one name share a kernel.
        always: see `kernel_files.Family`.
    """

    def wrap(emit: Callable[..., None]) -> Any:
        name = emit.__name__.strip("_")
        names = {key: f"{name}_{getattr(member, 'name', member)}" for key, member in members.items()}
        FAMILIES[name] = Family(names, always)
        cells(name)
        for full, member in {names[key]: member for key, member in members.items()}.items():
            _recipe(full, partial(_emitted, full, n_arguments, emit, member))

        def emit_call(b: Builder, key: Value, *values: Value) -> None:
            call_member(b, name, key, *values)

        emit_call.__name__, emit_call.__module__, emit_call.__doc__ = name, emit.__module__, emit.__doc__
        return operation(types.void, *[types.int64] * (1 + n_arguments))(emit_call)

    return wrap


def call_member(b: Builder, name: str, key: Value, *values: Value) -> None:
    """Write a call of the member of a family that has a number."""
    symbol = cells_symbol(name)
    table = b.module.globals.get(symbol)
    if table is None:
        table = ir.GlobalVariable(b.module, ir.ArrayType(I64, N_CELLS), symbol)
    address = b.load(b.gep(table, [I64(0), key], inbounds=True))
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    b.call(b.inttoptr(address, kind.as_pointer()), values)


@operation(numba.from_dtype(OP), types.int64)
def record(b: Builder, at: Value) -> Value:
    """The op record at an address."""
    return b.inttoptr(at, ir.ArrayType(I8, OP.itemsize).as_pointer())


@operation(types.void, *[types.int64] * 6)
def run_op(b: Builder, code: Value, *values: Value) -> None:
    """run_op(code, op, c, n, run, scratch): call the op's kernel."""
    call_member(b, OPS, code, *values)


cells(OPS)


@global_compiler_lock  # type: ignore[untyped-decorator]
def _emitted(name: str, n_arguments: int, emit: Callable[..., None], member: Any) -> Any:
    """LLVM's code of a kernel that is written as such."""
    module = registry.cpu_target.target_context.codegen()._create_empty_module(name)
    kind = ir.FunctionType(ir.VoidType(), [I64] * n_arguments)
    function = ir.Function(module, kind, symbol_of(name))
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, member, *function.args)
    builder.ret_void()
    fastmathpass.rewrite_module(module, FastMathOptions(FASTMATH))
    return codegen.ll.parse_assembly(str(module))


def _called(module: Any) -> list[str]:
    """The families that a module calls."""
    prefix = cells_symbol("")
    names = [variable.name for variable in module.global_variables]
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def code_of(name: str) -> Code:
    """A kernel's code, compiled unless a file holds it, and kept then."""
    code = read(name)
    if code is None:
        code = new_code(name)
        write(name, code)
    return code


@global_compiler_lock  # type: ignore[untyped-decorator]
def new_code(name: str) -> Code:
    """Compile a kernel, whatever is kept."""
    code, module = registry.cpu_target.target_context.codegen(), RECIPES[name]()
    for function in module.functions:
        if not function.is_declaration and function.name != symbol_of(name):
            function.linkage = "internal"
    passes, builder = code._module_pass_manager()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, builder)
    outside = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    data = {
        v.name
        for v in module.global_variables
        if v.is_declaration and not v.name.startswith(cells_symbol(""))
    }
    if strange := (outside - _C_FUNCTIONS) | (data - {COUNTER}):
        raise AssertionError(
            f"{name} names {sorted(strange)}, which a process that loads its file may not have"
        )
    return packed_code({n: FAMILIES[n] for n in _called(module)}, code._tm.emit_object(module))
