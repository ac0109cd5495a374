// Rounding inputs to int8, as kernels/ref.py defines it.
#pragma once
#include "common.h"

// Every lane gets the largest |x| of its warp, NaN if one is NaN, which fmaxf would drop: without their signs floats
// are in the order of their bits, and NaN is above all.
__device__ inline float warp_max_abs(float x) {
    int bits = __float_as_int(fabsf(x));
    for (int d = WARP / 2; d; d /= 2) bits = max(bits, __shfl_xor_sync(ALL_LANES, bits, d));
    return __int_as_float(bits);
}

// One warp rounds one block of 32, lane k weight k: d = max|x| / 127, q = rint(x * (1 / d)).
__device__ inline void quantise_block(float x, int block, signed char* q, float* d, int* sum) {
    float scale = warp_max_abs(x) / 127.f;
    float inverse = scale == 0.f ? 0.f : 1.f / scale;
    int rounded = __float2int_rn(x * inverse), total = warp_sum(rounded);
    q[(size_t)block * BLOCK + lane()] = (signed char)rounded;
    if (lane() == 0) d[block] = scale, sum[block] = total;
}
