// RoPE of one pair, and numbers on their way into a KV cache of floats.
#pragma once
#include "common.h"

struct Turned { float first, second; };
// (a, b) turned by the angle with this cosine (x) and sine (y).
__device__ inline Turned turn(float a, float b, float2 cos_sin) {
    return {fmaf(a, cos_sin.x, -(b * cos_sin.y)), fmaf(a, cos_sin.y, b * cos_sin.x)};
}
__device__ inline void put(float* to, float v) { *to = v; }
__device__ inline void put(__half* to, float v) { *to = __float2half(v); }
