// A float as two halves, high and low: what tensor cores multiply in its place.
#pragma once
#include "common.h"

// The bits of two halves in a word, the first one in its low half.
__device__ inline unsigned word_of_halves(__half a, __half b) {
    union { __half halves[2]; unsigned word; } u = {{a, b}};
    return u.word;
}
// The high halves of a and b in x, the low ones in y. Of a number below 65520 they miss 2^-22 of it, or 2^-25 where that
// is more.
__device__ inline uint2 in_halves(float a, float b) {
    __half high_a = __float2half(a), high_b = __float2half(b);
    __half low_a = __float2half(a - __half2float(high_a)), low_b = __float2half(b - __half2float(high_b));
    return {word_of_halves(high_a, high_b), word_of_halves(low_a, low_b)};
}
