// Rounding inputs to int8, as kernels/ref.py defines it.
#pragma once
#include "common.h"

constexpr int IN_A_LANE = 4, LANES_OF_BLOCK = BLOCK / IN_A_LANE, AT_ONCE_ROUNDED = WARP * IN_A_LANE;

// A float without its sign as an integer: in the order of the floats, and NaN, which fmaxf would drop, above all.
__device__ inline int size_bits(float x) { return __float_as_int(fabsf(x)); }

// Every lane gets the largest |x| of its warp, or NaN.
__device__ inline float warp_max_abs(float x) {
    int bits = size_bits(x);
    for (int d = WARP / 2; d; d /= 2) bits = max(bits, __shfl_xor_sync(ALL_LANES, bits, d));
    return __int_as_float(bits);
}

// One warp rounds four blocks of 32, eight lanes a block: d = max|x| / 127, q = rint(x * (1 / d)). Number `at` of all
// is a lane's first; a lane whose numbers lie after the end takes part in the shuffles and writes nothing.
__device__ inline void quantise_four(float4 x, size_t at, bool is_there, signed char* q, float* d, int* sum) {
    int bits = max(max(size_bits(x.x), size_bits(x.y)), max(size_bits(x.z), size_bits(x.w)));
    for (int k = LANES_OF_BLOCK / 2; k; k /= 2) bits = max(bits, __shfl_xor_sync(ALL_LANES, bits, k));
    float scale = __int_as_float(bits) / 127.f;
    float inverse = scale == 0.f ? 0.f : 1.f / scale;
    int a = __float2int_rn(x.x * inverse), b = __float2int_rn(x.y * inverse);
    int c = __float2int_rn(x.z * inverse), e = __float2int_rn(x.w * inverse), total = a + b + c + e;
    for (int k = LANES_OF_BLOCK / 2; k; k /= 2) total += __shfl_xor_sync(ALL_LANES, total, k);
    if (!is_there) return;
    *(unsigned*)(q + at) = (a & 255u) | (b & 255u) << 8 | (c & 255u) << 16 | (unsigned)e << 24;
    if (lane() % LANES_OF_BLOCK == 0) d[at / BLOCK] = scale, sum[at / BLOCK] = total;
}

// One warp rounds a block of 32, a number a lane: the bits of quantise_four. `at` is the lane's place.
__device__ inline void quantise_block(float x, size_t at, signed char* q, float* d, int* sum) {
    float scale = warp_max_abs(x) / 127.f, inverse = scale == 0.f ? 0.f : 1.f / scale;
    int rounded = __float2int_rn(x * inverse), total = warp_sum(rounded);
    q[at] = (signed char)rounded;
    if (lane() == 0) d[at / BLOCK] = scale, sum[at / BLOCK] = total;
}
