// A float as two halves, high and low: what tensor cores multiply in its place.
#pragma once
#include "tensor_cores.h"

// The bits of two halves in a word, the first one in its low half.
__device__ inline unsigned word_of_halves(__half a, __half b) {
    union { __half halves[2]; unsigned word; } u = {{a, b}};
    return u.word;
}
#ifdef TENSOR_CORES
// The high halves of a and b in x, the low ones in y. Of a number below 65520 they miss 2^-22 of it, or 2^-25 where
// that is more.
__device__ inline uint2 in_halves(float a, float b) {
    union { unsigned word; __half halves[2]; } high = {two_f16(a, b)};
    return {high.word, two_f16(a - __half2float(high.halves[0]), b - __half2float(high.halves[1]))};
}
#endif
