"""Records what ggml rounds rows of numbers to in Q6_K.

pip install llama-cpp-python
python tests/data/q6_k/record.py
"""

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
Q6_K, BLOCK, TYPE_SIZE = 14, 256, 210
SHAPE = (6, 2 * BLOCK)


def rows() -> dict[str, NDArray[np.float32]]:
    """Rows of each kind."""
    random = np.random.default_rng(1)
    normal = random.standard_normal((8, *SHAPE))
    tails = random.standard_t(2, SHAPE).astype(np.float32).view(np.uint32) & 0xFFFF0000
    kinds: dict[str, NDArray[Any]] = {
        "normal": normal[0],
        "half": (0.02 * normal[1]).astype(np.float16),
        "tails": tails.view(np.float32),
        "grid": 0.01 * random.integers(-40, 41, SHAPE),
        "sparse": normal[2] * (random.random(SHAPE) < 0.05),
        "tiny": normal[3] * 1e-15,
        "mixed": normal[4] * 10.0 ** random.integers(-6, 5, SHAPE),
        "huge": normal[5] * 1e6,
        "zeros": np.zeros(SHAPE),
    }
    return {name: numbers.astype(np.float32) for name, numbers in kinds.items()}


def main() -> None:
    """Write recorded.npz."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    sizes, pointer = [ctypes.c_int64] * 3, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *sizes, pointer]
    recorded: dict[str, NDArray[Any]] = {}
    for name, numbers in rows().items():
        blocks = np.empty((len(numbers), numbers.shape[1] // BLOCK * TYPE_SIZE), np.uint8)
        library.ggml_quantize_chunk(Q6_K, numbers.ctypes.data, blocks.ctypes.data, 0, *numbers.shape, None)
        recorded |= {name: numbers, f"{name}.q6_k": blocks}
    np.savez_compressed(HERE / "recorded.npz", **recorded)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
