// Types of 256 weights whose numbers are points of a grid: an index names four or eight of them at once.
//
// The points come from the package gguf, as TABLE_iq3_xxs and so on (tables.h), in programs of the type alone.
// All but the last two types have the signs beside the index, a bit a weight: seven of eight bits, where the
// number of minus signs is even.
#pragma once
#include "tables.h"
#include "weights.h"

__device__ inline unsigned eight_signs(unsigned seven) { return (seven & 127) | (__popc(seven & 127) & 1u) << 7; }
// Four positive bytes, negative where the bit is set.
__device__ inline int signed_bytes(unsigned v, unsigned signs) {
    unsigned ones = (unsigned)four_bits(signs);
    return (int)((v ^ ones * 255) + ones);
}
// Points a and b of eight numbers, with the signs of all sixteen.
__device__ inline int4 two_points(const uint2* grid, unsigned a, unsigned b, unsigned signs) {
    uint2 first = grid[a], second = grid[b];
    return {signed_bytes(first.x, signs), signed_bytes(first.y, signs >> 4), signed_bytes(second.x, signs >> 8),
            signed_bytes(second.y, signs >> 12)};
}
// Byte k of `indices`, with bit k of `bits` above it: four points of four numbers.
__device__ inline int4 four_points(const unsigned* grid, unsigned indices, unsigned bits, unsigned signs) {
    return {signed_bytes(grid[(indices & 255) | (bits & 1) << 8], signs),
            signed_bytes(grid[(indices >> 8 & 255) | (bits >> 1 & 1) << 8], signs >> 4),
            signed_bytes(grid[(indices >> 16 & 255) | (bits >> 2 & 1) << 8], signs >> 8),
            signed_bytes(grid[indices >> 24 | (bits >> 3 & 1) << 8], signs >> 12)};
}

// What all of them have: a half scale a block. The scale of 16 or 32 weights is d (1/2 + s) / 4 with an s of four bits,
// or likewise.
template <class Type> struct Points : Blocks<Type> {
    using Blocks<Type>::n;
    const __half* scales;
    size_t stride;                                // scales from row to row

    __device__ Points(const __half* scale_plane, int row_length)
        : Blocks<Type>(row_length), scales(scale_plane), stride(stride_of<__half>(n / 256)) {}
    static constexpr int MINIMA = 0, SPAN = 1, ROWS_AT_ONCE = 4;
    __device__ float of_block(int row, int unit) const { return __half2float(scales[row * stride + unit / 16]); }
};

// ---- IQ2_XXS: of 32 weights a word of four indices, and a word of signs and, on top, the scale ----

#define PLANES_iq2_xxs(w) const __half* __restrict__ w##_scales, const uint2* __restrict__ w##_quants
#define ROWS_iq2_xxs(w, n) IQ2_XXS(w##_scales, w##_quants, n)

#ifdef TABLE_iq2_xxs
__device__ const uint2 iq2_xxs_points[] = {TABLE_iq2_xxs};

struct IQ2_XXS : Points<IQ2_XXS> {
    const uint2* quants;                          // eight a block

    __device__ IQ2_XXS(const __half* scale_plane, const uint2* quant_plane, int row_length)
        : Points(scale_plane, row_length), quants(quant_plane) {}

    static constexpr bool HALF_SCALES = false;
    __device__ int4 sixteen(int row, int unit) const {
        uint2 q = quants[(size_t)row * (n / 32) + unit / 2];
        unsigned indices = q.x >> unit % 2 * 16, signs = q.y >> unit % 2 * 14;
        return two_points(iq2_xxs_points, indices & 255, indices >> 8 & 255,
                          eight_signs(signs) | eight_signs(signs >> 7) << 8);
    }
    __device__ float scale(int row, int unit) const {
        unsigned s = quants[(size_t)row * (n / 32) + unit / 2].y >> 28;
        return of_block(row, unit) * (0.5f + (float)s) * 0.25f;
    }
};
#endif

// ---- IQ2_XS: of eight weights an index of nine bits and seven signs; a scale of four bits for 16 ----

#define PLANES_iq2_xs(w) const __half* __restrict__ w##_scales, const unsigned* __restrict__ w##_quants, \
                         const unsigned char* __restrict__ w##_group_scales
#define ROWS_iq2_xs(w, n) IQ2_XS(w##_scales, w##_quants, w##_group_scales, n)

#ifdef TABLE_iq2_xs
__device__ const uint2 iq2_xs_points[] = {TABLE_iq2_xs};

struct IQ2_XS : Points<IQ2_XS> {
    const unsigned* quants;                       // 16 a block
    const unsigned char* group_scales;            // eight a block
    size_t group_stride;

    __device__ IQ2_XS(const __half* scale_plane, const unsigned* quant_plane, const unsigned char* group_plane,
                      int row_length)
        : Points(scale_plane, row_length), quants(quant_plane), group_scales(group_plane),
          group_stride(stride_of<unsigned char>(n / 32)) {}

    static constexpr bool HALF_SCALES = true;
    __device__ int4 sixteen(int row, int unit) const {
        unsigned q = quants[(size_t)row * (n / 16) + unit];
        return two_points(iq2_xs_points, q & 511, q >> 16 & 511, eight_signs(q >> 9) | eight_signs(q >> 25) << 8);
    }
    __device__ float scale(int row, int unit) const {
        int s = group_scales[row * group_stride + unit / 2] >> unit % 2 * 4 & 15;
        return of_block(row, unit) * (0.5f + (float)s) * 0.25f;
    }
};
#endif

// ---- IQ2_S: indices of ten bits, eight of them in a byte and two in the high bits; eight signs ----

#define PLANES_iq2_s(w) const __half* __restrict__ w##_scales, const unsigned short* __restrict__ w##_quants, \
                        const unsigned short* __restrict__ w##_signs, \
                        const unsigned char* __restrict__ w##_high_bits, \
                        const unsigned char* __restrict__ w##_group_scales
#define ROWS_iq2_s(w, n) IQ2_S(w##_scales, w##_quants, w##_signs, w##_high_bits, w##_group_scales, n)

#ifdef TABLE_iq2_s
__device__ const uint2 iq2_s_points[] = {TABLE_iq2_s};

struct IQ2_S : Points<IQ2_S> {
    const unsigned short *quants, *signs;         // 16 a block of each
    const unsigned char *high_bits, *group_scales;  // eight a block of each
    size_t group_stride;

    __device__ IQ2_S(const __half* scale_plane, const unsigned short* quant_plane, const unsigned short* sign_plane,
                     const unsigned char* high_plane, const unsigned char* group_plane, int row_length)
        : Points(scale_plane, row_length), quants(quant_plane), signs(sign_plane), high_bits(high_plane),
          group_scales(group_plane), group_stride(stride_of<unsigned char>(n / 32)) {}

    static constexpr bool HALF_SCALES = true;
    __device__ int4 sixteen(int row, int unit) const {
        size_t at = (size_t)row * (n / 16) + unit;
        unsigned q = quants[at], high = high_bits[row * group_stride + unit / 2] >> unit % 2 * 4;
        return two_points(iq2_s_points, (q & 255) | (high & 3) << 8, q >> 8 | (high >> 2 & 3) << 8, signs[at]);
    }
    __device__ float scale(int row, int unit) const {
        int s = group_scales[row * group_stride + unit / 2] >> unit % 2 * 4 & 15;
        return of_block(row, unit) * (0.5f + (float)s) * 0.25f;
    }
};
#endif

// ---- IQ3_XXS: of four weights an index of a byte; of 32, a word of signs and the scale ----------

#define PLANES_iq3_xxs(w) const __half* __restrict__ w##_scales, const unsigned* __restrict__ w##_quants, \
                          const unsigned* __restrict__ w##_signs
#define ROWS_iq3_xxs(w, n) IQ3_XXS(w##_scales, w##_quants, w##_signs, n)

#ifdef TABLE_iq3_xxs
__device__ const unsigned iq3_xxs_points[] = {TABLE_iq3_xxs};

struct IQ3_XXS : Points<IQ3_XXS> {
    const unsigned *quants, *signs;               // 16 and eight a block

    __device__ IQ3_XXS(const __half* scale_plane, const unsigned* quant_plane, const unsigned* sign_plane,
                       int row_length)
        : Points(scale_plane, row_length), quants(quant_plane), signs(sign_plane) {}

    static constexpr bool HALF_SCALES = false;
    __device__ int4 sixteen(int row, int unit) const {
        unsigned bits = signs[(size_t)row * (n / 32) + unit / 2] >> unit % 2 * 14;
        return four_points(iq3_xxs_points, quants[(size_t)row * (n / 16) + unit], 0,
                           eight_signs(bits) | eight_signs(bits >> 7) << 8);
    }
    __device__ float scale(int row, int unit) const {
        unsigned s = signs[(size_t)row * (n / 32) + unit / 2] >> 28;
        return of_block(row, unit) * (0.5f + (float)s) * 0.5f;
    }
};
#endif

// ---- IQ3_S: indices of nine bits, eight signs; the scale of 32 weights is d (1 + 2 s) ------------

#define PLANES_iq3_s(w) const __half* __restrict__ w##_scales, const unsigned* __restrict__ w##_quants, \
                        const unsigned char* __restrict__ w##_high_bits, \
                        const unsigned short* __restrict__ w##_signs, \
                        const unsigned char* __restrict__ w##_group_scales
#define ROWS_iq3_s(w, n) IQ3_S(w##_scales, w##_quants, w##_high_bits, w##_signs, w##_group_scales, n)

#ifdef TABLE_iq3_s
__device__ const unsigned iq3_s_points[] = {TABLE_iq3_s};

struct IQ3_S : Points<IQ3_S> {
    const unsigned* quants;                       // 16 a block
    const unsigned char* high_bits;               // eight a block
    const unsigned short* signs;                  // 16 a block
    const unsigned char* group_scales;            // four a block
    size_t high_stride, group_stride;

    __device__ IQ3_S(const __half* scale_plane, const unsigned* quant_plane, const unsigned char* high_plane,
                     const unsigned short* sign_plane, const unsigned char* group_plane, int row_length)
        : Points(scale_plane, row_length), quants(quant_plane), high_bits(high_plane), signs(sign_plane),
          group_scales(group_plane), high_stride(stride_of<unsigned char>(n / 32)),
          group_stride(stride_of<unsigned char>(n / 64)) {}

    static constexpr bool HALF_SCALES = false;
    __device__ int4 sixteen(int row, int unit) const {
        size_t at = (size_t)row * (n / 16) + unit;
        unsigned high = high_bits[row * high_stride + unit / 2] >> unit % 2 * 4;
        return four_points(iq3_s_points, quants[at], high, signs[at]);
    }
    __device__ float scale(int row, int unit) const {
        int s = group_scales[row * group_stride + unit / 4] >> unit / 2 % 2 * 4 & 15;
        return of_block(row, unit) * (float)(1 + 2 * s);
    }
};
#endif

// ---- IQ1_S, IQ1_M: points of eight -1, 0 and 1 by indices of eleven bits; weight = scale * (point +- 1/8) ----
// The numbers are eight times that: TABLE_iq1 has 8 point + 16, of which 15 or 17 is taken away.

#ifdef TABLE_iq1
__device__ const uint2 iq1_points[] = {TABLE_iq1};
__device__ inline uint2 iq1_numbers(unsigned index, unsigned is_minus) {
    uint2 point = iq1_points[index];
    unsigned less = is_minus ? 0x11111111u : 0x0f0f0f0fu;
    return {(unsigned)bytes_less((int)point.x, less), (unsigned)bytes_less((int)point.y, less)};
}
#endif

// Of 32 weights: four bytes of indices, and 16 bits: three more for each, the scale, and the sign of the eighth.
#define PLANES_iq1_s(w) const __half* __restrict__ w##_scales, const unsigned short* __restrict__ w##_quants, \
                        const unsigned short* __restrict__ w##_high_bits
#define ROWS_iq1_s(w, n) IQ1_S(w##_scales, w##_quants, w##_high_bits, n)

#ifdef TABLE_iq1
struct IQ1_S : Points<IQ1_S> {
    const unsigned short *quants, *high_bits;     // 16 and eight a block

    __device__ IQ1_S(const __half* scale_plane, const unsigned short* quant_plane,
                     const unsigned short* high_plane, int row_length)
        : Points(scale_plane, row_length), quants(quant_plane), high_bits(high_plane) {}

    static constexpr bool HALF_SCALES = false;
    __device__ int4 sixteen(int row, int unit) const {
        unsigned q = quants[(size_t)row * (n / 16) + unit], bits = high_bits[(size_t)row * (n / 32) + unit / 2];
        unsigned high = bits >> unit % 2 * 6, is_minus = bits >> 15;
        uint2 a = iq1_numbers((q & 255) | (high & 7) << 8, is_minus);
        uint2 b = iq1_numbers(q >> 8 | (high >> 3 & 7) << 8, is_minus);
        return {(int)a.x, (int)a.y, (int)b.x, (int)b.y};
    }
    __device__ float scale(int row, int unit) const {
        int s = high_bits[(size_t)row * (n / 32) + unit / 2] >> 12 & 7;
        return of_block(row, unit) * (float)(2 * s + 1) * 0.125f;
    }
};
#endif

// Of 16 weights: two bytes of indices, and a byte with three more bits and a sign for each. The scales are 16 numbers
// of three bits in four times 16; the four bits above each make up the block's half.
#define PLANES_iq1_m(w) const unsigned short* __restrict__ w##_quants, \
                        const unsigned char* __restrict__ w##_high_bits, \
                        const unsigned short* __restrict__ w##_group_scales
#define ROWS_iq1_m(w, n) IQ1_M(w##_quants, w##_high_bits, w##_group_scales, n)

#ifdef TABLE_iq1
struct IQ1_M : Blocks<IQ1_M> {
    const unsigned short* quants;                 // 16 a block
    const unsigned char* high_bits;               // 16 a block
    const unsigned short* group_scales;           // four a block
    size_t group_stride;

    __device__ IQ1_M(const unsigned short* quant_plane, const unsigned char* high_plane,
                     const unsigned short* group_plane, int row_length)
        : Blocks(row_length), quants(quant_plane), high_bits(high_plane), group_scales(group_plane),
          group_stride(stride_of<unsigned short>(n / 64)) {}

    static constexpr bool HALF_SCALES = true;
    static constexpr int MINIMA = 0, SPAN = 1, ROWS_AT_ONCE = 4;
    __device__ int4 sixteen(int row, int unit) const {
        unsigned q = quants[(size_t)row * (n / 16) + unit], high = high_bits[(size_t)row * (n / 16) + unit];
        uint2 a = iq1_numbers((q & 255) | (high & 7) << 8, high >> 3 & 1);
        uint2 b = iq1_numbers(q >> 8 | (high >> 4 & 7) << 8, high >> 7);
        return {(int)a.x, (int)a.y, (int)b.x, (int)b.y};
    }
    __device__ float scale(int row, int unit) const {
        uint2 words = *(const uint2*)(group_scales + row * group_stride + unit / 16 * 4);
        unsigned pair = unit % 16 / 8 ? words.y : words.x;
        int s = pair >> (unit % 8 / 4 * 16 + unit % 4 * 3) & 7;
        union { unsigned short bits; __half value; } d;
        d.bits = (unsigned short)((words.x >> 12 & 15) | (words.x >> 28) << 4 | (words.y >> 12 & 15) << 8 |
                                  (words.y >> 28) << 12);
        return __half2float(d.value) * (float)(2 * s + 1) * 0.125f;
    }
};
#endif
