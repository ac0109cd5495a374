// How kernels take a matrix w and its input, by the ending of their names.
//
// PLANES_q4_0(w), ROWS_q4_0(w, n): beside each type, see weights.h. INPUT_q4_0: parameters for the input, and
// X_q4_0: the input made of them; for each type of a program sources.py says which of the two kinds it is.
//
// A kernel's macro is handed to ONE_TYPE, TWO_TYPES or THREE_TYPES, by how many matrices of types of their own
// the kernel multiplies. They are defined in front of the program, and make it for the types that were asked for:
// M(type), M(ending, a, b) or M(ending, a, b, c), where the ending is the type if all are the same.
#pragma once
#include "weights_32.h"
#include "weights_grid.h"
#include "weights_half.h"
#include "weights_k.h"
#include "weights_ternary.h"

#define INPUT_FLOATS const float4* __restrict__ x
#define INPUT_ROUNDED const int4* __restrict__ q, const float* __restrict__ d, const int* __restrict__ sum
#define X_FLOATS Floats{(const float*)x}
#define X_ROUNDED Quantised{q, d, sum}
