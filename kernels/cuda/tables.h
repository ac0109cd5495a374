// Tables of numbers that weights are places in. Their content comes from the package gguf: tables.py puts it in
// front of a program, as words of four int8. TABLE_iq4_nl and TABLE_mxfp4 have four words; those of points, of
// which only the types of a program have theirs, a word or two a point.
#pragma once
#include "common.h"

// The bytes of a table of 16 at four places: first those of its lower and of its upper half, then by bit 3.
__device__ inline int values_at(int places, unsigned a, unsigned b, unsigned c, unsigned d) {
    unsigned nibbles = (unsigned)places | (unsigned)places >> 4;
    nibbles = (nibbles & 0xff) | (nibbles >> 8 & 0xff00);             // the four places side by side
    unsigned lower = __byte_perm(a, b, nibbles & 0x7777), upper = __byte_perm(c, d, nibbles & 0x7777);
    return (int)__byte_perm(lower, upper, 0x3210 | (nibbles & 0x8888) >> 1);
}
__device__ inline int4 values_at(int4 places, unsigned a, unsigned b, unsigned c, unsigned d) {
    return {values_at(places.x, a, b, c, d), values_at(places.y, a, b, c, d), values_at(places.z, a, b, c, d),
            values_at(places.w, a, b, c, d)};
}
__device__ inline int4 iq4_nl_values(int4 places) { return values_at(places, TABLE_iq4_nl); }
__device__ inline int4 mxfp4_values(int4 places) { return values_at(places, TABLE_mxfp4); }
