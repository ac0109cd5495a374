// How kernels take a matrix w and its input, by the ending of their names.
//
// PLANES_q4_0(w): parameters for w's planes, in the order of planes.py. ROWS_q4_0(w, n): the rows made
// of them. INPUT_q4_0: parameters for the input. X_q4_0: the input made of them.
#pragma once
#include "weights.h"

#define PLANES_f32(w) const float* __restrict__ w
#define PLANES_f16(w) const __half* __restrict__ w
#define PLANES_bf16(w) const unsigned short* __restrict__ w
#define PLANES_q8_0(w) const __half* __restrict__ w##_scales, const int4* __restrict__ w##_quants
#define PLANES_q4_0(w) const __half* __restrict__ w##_scales, const uint4* __restrict__ w##_quants
#define PLANES_q5_0(w) const __half* __restrict__ w##_scales, const unsigned* __restrict__ w##_high_bits, \
                       const uint4* __restrict__ w##_quants
#define PLANES_q6_K(w) const uint4* __restrict__ w##_quants, const uint4* __restrict__ w##_high_bits, \
                       const signed char* __restrict__ w##_group_scales, const __half* __restrict__ w##_scales

#define ROWS_f32(w, n) Plain<float>(w, n)
#define ROWS_f16(w, n) Plain<__half>(w, n)
#define ROWS_bf16(w, n) Plain<unsigned short>(w, n)
#define ROWS_q8_0(w, n) Q8_0(w##_scales, w##_quants, n)
#define ROWS_q4_0(w, n) Q4_0(w##_scales, w##_quants, n)
#define ROWS_q5_0(w, n) Q5_0(w##_scales, w##_high_bits, w##_quants, n)
#define ROWS_q6_K(w, n) Q6_K(w##_quants, w##_high_bits, w##_group_scales, w##_scales, n)

#define INPUT_f32 const float4* __restrict__ x
#define INPUT_f16 INPUT_f32
#define INPUT_bf16 INPUT_f32
#define INPUT_q8_0 const int4* __restrict__ q, const float* __restrict__ d, const int* __restrict__ sum
#define INPUT_q4_0 INPUT_q8_0
#define INPUT_q5_0 INPUT_q8_0
#define INPUT_q6_K INPUT_q8_0

#define X_f32 Floats{(const float*)x}
#define X_f16 X_f32
#define X_bf16 X_f32
#define X_q8_0 Quantised{q, d, sum}
#define X_q4_0 X_q8_0
#define X_q5_0 X_q8_0
#define X_q6_K X_q8_0
