"""All weight types that have CPU kernels: one table, by GGUF's type numbers."""

from hotcold.kernels.cpu.k_weights import Q4_K, Q5_K, Q6_K
from hotcold.kernels.cpu.weights import (
    BF16_TYPE,
    F16_TYPE,
    F32_TYPE,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    BlockType,
    FloatType,
    WeightType,
)

BLOCK_TYPES: tuple[BlockType, ...] = (Q4_0(), Q8_0(), Q4_1(), Q5_0(), Q5_1(), Q4_K(), Q5_K(), Q6_K())
FLOAT_TYPES: tuple[FloatType, ...] = (F32_TYPE, F16_TYPE, BF16_TYPE)
WEIGHT_TYPES: tuple[WeightType, ...] = (*FLOAT_TYPES, *BLOCK_TYPES)
SPARSE_TYPES = tuple(kind for kind in WEIGHT_TYPES if kind.in_sparse_ffn)
BY_ID = {kind.type_id: kind for kind in WEIGHT_TYPES}

