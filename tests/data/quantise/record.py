"""Records what ggml rounds rows of numbers to in each block type, without and with an importance matrix.

pip install llama-cpp-python
python tests/data/quantise/record.py
"""

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

HERE = Path(__file__).parent
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4")
SHAPE = (2, 512)


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
        "constant": np.full(SHAPE, 0.3),
        "shifted": 3 + 0.01 * normal[6],
    }
    return {name: numbers.astype(np.float32) for name, numbers in kinds.items()}


def importance() -> NDArray[np.float32]:
    """What each column weighs: some much, some nothing."""
    weights = (np.random.default_rng(2).random(SHAPE[1]) ** 4).astype(np.float32)
    weights[:40] = 0
    return weights


def main() -> None:
    """Write recorded.npz."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    sizes, pointer = [ctypes.c_int64] * 3, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *sizes, pointer]
    weights = importance()
    recorded: dict[str, NDArray[Any]] = {**rows(), "importance": weights}
    for kind in (GGMLQuantizationType[name] for name in TYPES):
        block, size = GGML_QUANT_SIZES[kind]
        for suffix, address in (("", None), (".importance", weights.ctypes.data)):
            for name, numbers in rows().items():
                blocks = np.empty((len(numbers), numbers.shape[1] // block * size), np.uint8)
                library.ggml_quantize_chunk(
                    int(kind), numbers.ctypes.data, blocks.ctypes.data, 0, *numbers.shape, address
                )
                recorded[f"{name}.{kind.name}{suffix}"] = blocks
    np.savez_compressed(HERE / "recorded.npz", **recorded)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
