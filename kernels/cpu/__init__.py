"""CPU kernels: Numba functions over LLVM vector code, run by a team of threads."""

from hotcold.code_files import check_compiling as _check_compiling

_check_compiling()
