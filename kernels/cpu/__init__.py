"""CPU kernels: Numba functions over LLVM vector code, run by a team of threads.

Importing this package sets where Numba keeps the compiled code of its modules (see `cache.py`), so
it has to come before Numba sees any of them.
"""

from hotcold.compiled_code import check_compiling as _check_compiling
from hotcold.kernels.cpu.cache import needs_compiling as needs_compiling
from hotcold.kernels.cpu.cache import use_own_folder as _use_own_folder

_check_compiling()
_use_own_folder()
