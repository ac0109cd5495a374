"""All weight types that have CPU kernels: one table, by GGUF's type numbers."""

from hotcold.kernels.cpu.grid_weights import IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS
from hotcold.kernels.cpu.k_weights import IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, TQ1_0, TQ2_0
from hotcold.kernels.cpu.weights import BF16_TYPE, F16_TYPE, F32_TYPE, BlockType, FloatType, WeightType
from hotcold.kernels.cpu.weights_of_32 import IQ4_NL, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0

BLOCK_TYPES: tuple[BlockType, ...] = (
    *(Q4_0(), Q8_0(), Q4_1(), Q5_0(), Q5_1(), IQ4_NL(), MXFP4()),
    *(Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K(), IQ4_XS()),
    *(IQ3_S(), IQ3_XXS(), IQ2_S(), IQ2_XS(), IQ2_XXS(), IQ1_M(), IQ1_S(), TQ2_0(), TQ1_0()),
)
FLOAT_TYPES: tuple[FloatType, ...] = (F32_TYPE, F16_TYPE, BF16_TYPE)
WEIGHT_TYPES: tuple[WeightType, ...] = (*FLOAT_TYPES, *BLOCK_TYPES)
BY_ID = {kind.type_id: kind for kind in WEIGHT_TYPES}
