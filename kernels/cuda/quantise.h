// Rounding inputs to int8, as kernels/ref.py defines it.
#pragma once
#include "common.h"

// One warp rounds one block of 32, lane k weight k: d = max|x| / 127, q = rint(x * (1 / d)).
__device__ inline void quantise_block(float x, int block, signed char* q, float* d, int* sum) {
    float scale = warp_max(fabsf(x)) / 127.f;
    float inverse = scale == 0.f ? 0.f : 1.f / scale;
    int rounded = __float2int_rn(x * inverse), total = warp_sum(rounded);
    q[(size_t)block * BLOCK + lane()] = (signed char)rounded;
    if (lane() == 0) d[block] = scale, sum[block] = total;
}
