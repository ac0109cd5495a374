// Types with blocks of 256 weights, whose sub-blocks have small integer scales of their own.
#pragma once
#include "tables.h"
#include "weights.h"

// ---- Q4_K, Q5_K: weight = scale * scale of its 32 * number - minimum * minimum of its 32 --------
// 64 weights lie in 32 bytes, the first 32 of them in the low nibbles. Bit b of byte k of a block's high bits is the
// fifth bit of weight 32 b + k. Eight scales and eight minima of six bits lie in 12 bytes.

// The number of sub-block b: the first four of each kind are whole in word 0 or 1, the others have their lower four
// bits in word 2 and the upper two above those of words 0 and 1.
__device__ inline int six_bits_of(const unsigned* words, int b, int kind) {
    int at = 8 * (b % 4);
    unsigned first = words[kind] >> at, last = words[2] >> (at + 4 * kind);  // both are loaded: no branch
    unsigned lower = b < 4 ? first : last, upper = b < 4 ? first >> 4 : first >> 6;
    return (int)((lower & 15) | (upper & 3) << 4);
}

template <class Type> struct ScalesAndMinima : Blocks<Type> {
    using Blocks<Type>::n;
    const __half *scales, *minima;
    const unsigned* group_scales;                 // three words a block
    size_t stride, group_stride;                  // scales, or minima, and words from row to row

    __device__ ScalesAndMinima(const __half* scale_plane, const __half* minimum_plane, const unsigned* group_plane,
                               int row_length)
        : Blocks<Type>(row_length), scales(scale_plane), minima(minimum_plane), group_scales(group_plane),
          stride(stride_of<__half>(n / 256)), group_stride(stride_of<unsigned>(3 * (n / 256))) {}

    static constexpr bool HALF_SCALES = false;
    static constexpr int MINIMA = 1, SPAN = 2, ROWS_AT_ONCE = 4;
    __device__ float scale(int row, int unit) const {
        return __half2float(scales[row * stride + unit / 16]) * (float)of_group(row, unit, 0);
    }
    __device__ float minimum(int row, int unit) const {
        return __half2float(minima[row * stride + unit / 16]) * (float)of_group(row, unit, 1);
    }
    __device__ int of_group(int row, int unit, int kind) const {
        return six_bits_of(group_scales + row * group_stride + 3 * (unit / 16), unit % 16 / 2, kind);
    }
};

#define PLANES_q4_K(w) const __half* __restrict__ w##_scales, const __half* __restrict__ w##_minima, \
                       const unsigned* __restrict__ w##_group_scales, const uint4* __restrict__ w##_quants
#define ROWS_q4_K(w, n) Q4_K(w##_scales, w##_minima, w##_group_scales, w##_quants, n)

struct Q4_K : ScalesAndMinima<Q4_K> {
    const uint4* quants;                          // eight a block

    __device__ Q4_K(const __half* scale_plane, const __half* minimum_plane, const unsigned* group_plane,
                    const uint4* quant_plane, int row_length)
        : ScalesAndMinima(scale_plane, minimum_plane, group_plane, row_length), quants(quant_plane) {}

    __device__ int4 sixteen(int row, int unit) const {
        return nibbles(quants[(size_t)row * (n / 32) + unit / 4 * 2 + unit % 2], unit / 2 % 2);
    }
};

#define PLANES_q5_K(w) const __half* __restrict__ w##_scales, const __half* __restrict__ w##_minima, \
                       const unsigned* __restrict__ w##_group_scales, const uint4* __restrict__ w##_high_bits, \
                       const uint4* __restrict__ w##_quants
#define ROWS_q5_K(w, n) Q5_K(w##_scales, w##_minima, w##_group_scales, w##_high_bits, w##_quants, n)

struct Q5_K : ScalesAndMinima<Q5_K> {
    const uint4 *high_bits, *quants;              // two and eight a block

    __device__ Q5_K(const __half* scale_plane, const __half* minimum_plane, const unsigned* group_plane,
                    const uint4* high_plane, const uint4* quant_plane, int row_length)
        : ScalesAndMinima(scale_plane, minimum_plane, group_plane, row_length), high_bits(high_plane),
          quants(quant_plane) {}

    static constexpr int SPAN = 1, ROWS_AT_ONCE = 2;  // two blocks at a time would spill
    __device__ int4 sixteen(int row, int unit) const {
        int4 low = nibbles(quants[(size_t)row * (n / 32) + unit / 4 * 2 + unit % 2], unit / 2 % 2);
        uint4 high = high_bits[(size_t)row * (n / 128) + unit / 16 * 2 + unit % 2];
        return both(low, shifted_up(masked(shifted(high, unit % 16 / 2), 0x01010101u), 4));
    }
};

// ---- Q6_K: 256 numbers of six bits; weight = scale * scale of its 16 * (number - 32) -----------
// Half a block, 128 weights, has 64 bytes of low nibbles and 32 of upper bits. Its sixteen number g
// lies in bytes 16 (g % 4) of the nibbles, low ones for g < 4, and in bytes 16 (g % 2) of the upper
// bits, from bit 2 (g / 2) on.

// Each byte's two lowest bits of `upper` over a nibble of `low`, minus 32.
__device__ inline int six(int low, unsigned upper) { return low | (int)((upper & 0x03030303u) << 4); }
__device__ inline int4 six_bits(int4 low, uint4 upper) {
    int4 v{six(low.x, upper.x), six(low.y, upper.y), six(low.z, upper.z), six(low.w, upper.w)};
    return bytes_less(v, 0x20202020u);
}

#define PLANES_q6_K(w) const uint4* __restrict__ w##_quants, const uint4* __restrict__ w##_high_bits, \
                       const signed char* __restrict__ w##_group_scales, const __half* __restrict__ w##_scales
#define ROWS_q6_K(w, n) Q6_K(w##_quants, w##_high_bits, w##_group_scales, w##_scales, n)

struct Q6_K : Blocks<Q6_K> {
    const uint4 *quants, *high_bits;              // eight and four of them a block
    const signed char* group_scales;              // 16 of them a block
    const __half* scales;
    size_t stride;                                // scales from row to row

    __device__ Q6_K(const uint4* quant_plane, const uint4* high_plane, const signed char* group_plane,
                    const __half* scale_plane, int row_length)
        : Blocks(row_length), quants(quant_plane), high_bits(high_plane), group_scales(group_plane),
          scales(scale_plane), stride(stride_of<__half>(n / 256)) {}

    // Four sixteens that share their bytes: 0, 2, 4, 6 of a half, or 1, 3, 5, 7. There are seven 16-byte loads in it.
    __device__ float add_piece(int row, int piece, Quantised x, float s) const {
        const uint4* low = quants + (size_t)row * (n / 32);
        int half = piece / 2, side = piece % 2, first = 8 * half + side;
        uint4 a = low[4 * half + side], b = low[4 * half + side + 2], upper = high_bits[(size_t)row * (n / 64) + piece];
        float d = __half2float(scales[row * stride + piece / 4]);
        UNROLL(4)
        for (int k = 0; k < 4; k++) {
            int unit = first + 2 * k;
            int4 w = six_bits(nibbles(k % 2 ? b : a, k / 2), shifted(upper, 2 * k));
            float scale = d * (float)group_scales[(size_t)row * (n / 16) + unit] * x.d[unit / 2];
            s = fmaf(scale, (float)dot16(w, x.q[unit], 0), s);
        }
        return s;
    }
    static constexpr bool HALF_SCALES = true, QUARTERS = true;
    static constexpr int MINIMA = 0, SPAN = 1, ROWS_AT_ONCE = 4;
    __device__ int4 sixteen(int row, int unit) const {
        int half = unit / 8, g = unit % 8;
        uint4 q = quants[(size_t)row * (n / 32) + 4 * half + g % 4];
        uint4 upper = high_bits[(size_t)row * (n / 64) + 2 * half + g % 2];
        return six_bits(nibbles(q, g / 4), shifted(upper, g / 2 * 2));
    }
    __device__ float scale(int row, int unit) const {
        float of_group = (float)group_scales[(size_t)row * (n / 16) + unit];
        return __half2float(scales[row * stride + unit / 16]) * of_group;
    }
};

// ---- Q2_K: 256 numbers of two bits; weight = scale * scale of its 16 * number - minimum * minimum of its 16 ----
// 128 weights lie in 32 bytes: sixteen number g of them in bytes 16 (g % 2), from bit 2 (g / 2) on. A byte a
// sixteen has its scale in the low nibble and its minimum in the high one.

#define PLANES_q2_K(w) const unsigned char* __restrict__ w##_group_scales, const uint4* __restrict__ w##_quants, \
                       const __half* __restrict__ w##_scales, const __half* __restrict__ w##_minima
#define ROWS_q2_K(w, n) Q2_K(w##_group_scales, w##_quants, w##_scales, w##_minima, n)

struct Q2_K : Blocks<Q2_K> {
    const unsigned char* group_scales;            // 16 a block
    const uint4* quants;                          // four a block
    const __half *scales, *minima;
    size_t stride;                                // scales, or minima, from row to row

    __device__ Q2_K(const unsigned char* group_plane, const uint4* quant_plane, const __half* scale_plane,
                    const __half* minimum_plane, int row_length)
        : Blocks(row_length), group_scales(group_plane), quants(quant_plane), scales(scale_plane),
          minima(minimum_plane), stride(stride_of<__half>(n / 256)) {}

    static constexpr bool HALF_SCALES = true, QUARTERS = true;
    static constexpr int MINIMA = 2, SPAN = 1, ROWS_AT_ONCE = 4;
    __device__ int4 sixteen(int row, int unit) const {
        uint4 q = quants[(size_t)row * (n / 64) + unit / 8 * 2 + unit % 2];
        return masked(shifted(q, unit % 8 / 2 * 2), 0x03030303u);
    }
    __device__ float scale(int row, int unit) const {
        float of_group = (float)(group_scales[(size_t)row * (n / 16) + unit] & 15);
        return __half2float(scales[row * stride + unit / 16]) * of_group;
    }
    __device__ float minimum(int row, int unit) const {
        float of_group = (float)(group_scales[(size_t)row * (n / 16) + unit] >> 4);
        return __half2float(minima[row * stride + unit / 16]) * of_group;
    }
};

// ---- Q3_K: 256 numbers of three bits; weight = scale * (scale of its 16 - 32) * (number - 4) ----
// Two bits as in Q2_K; the third of weight 32 b + k is bit b of byte k of the high bits. The 16 scales of six bits lie
// in 12 bytes: four bits in the nibbles of the first eight, two in the others.

#define PLANES_q3_K(w) const uint4* __restrict__ w##_high_bits, const uint4* __restrict__ w##_quants, \
                       const unsigned char* __restrict__ w##_group_scales, const __half* __restrict__ w##_scales
#define ROWS_q3_K(w, n) Q3_K(w##_high_bits, w##_quants, w##_group_scales, w##_scales, n)

struct Q3_K : Blocks<Q3_K> {
    const uint4 *high_bits, *quants;              // two and four a block
    const unsigned char* group_scales;            // 12 a block
    const __half* scales;
    size_t stride, group_stride;                  // scales, and bytes of those of groups, from row to row

    __device__ Q3_K(const uint4* high_plane, const uint4* quant_plane, const unsigned char* group_plane,
                    const __half* scale_plane, int row_length)
        : Blocks(row_length), high_bits(high_plane), quants(quant_plane), group_scales(group_plane),
          scales(scale_plane), stride(stride_of<__half>(n / 256)),
          group_stride(stride_of<unsigned char>(12 * (n / 256))) {}

    static constexpr bool HALF_SCALES = true, QUARTERS = true;
    static constexpr int MINIMA = 0, SPAN = 1, ROWS_AT_ONCE = 2;
    __device__ int4 sixteen(int row, int unit) const {
        uint4 q = quants[(size_t)row * (n / 64) + unit / 8 * 2 + unit % 2];
        uint4 high = high_bits[(size_t)row * (n / 128) + unit / 16 * 2 + unit % 2];
        int4 third = shifted_up(masked(shifted(high, unit % 16 / 2), 0x01010101u), 2);
        return bytes_less(both(masked(shifted(q, unit % 8 / 2 * 2), 0x03030303u), third), 0x04040404u);
    }
    __device__ float scale(int row, int unit) const {
        const unsigned char* of_block = group_scales + row * group_stride + unit / 16 * 12;
        int u = unit % 16, low = of_block[u % 8] >> u / 8 * 4 & 15, high = of_block[8 + u % 4] >> u / 4 * 2 & 3;
        return __half2float(scales[row * stride + unit / 16]) * (float)((low | high << 4) - 32);
    }
};

// ---- IQ4_XS: nibbles as in IQ4_NL; weight = scale * (scale of its 32 - 32) * table[nibble] ------
// Each 32 weights lie in 16 bytes as those of a block of 32 do. Their scale has four bits in the nibbles of
// group_scales and two in the bits of high_scales.

#define PLANES_iq4_xs(w) const __half* __restrict__ w##_scales, const unsigned short* __restrict__ w##_high_scales, \
                         const unsigned char* __restrict__ w##_group_scales, const uint4* __restrict__ w##_quants
#define ROWS_iq4_xs(w, n) IQ4_XS(w##_scales, w##_high_scales, w##_group_scales, w##_quants, n)

struct IQ4_XS : Blocks<IQ4_XS> {
    const __half* scales;
    const unsigned short* high_scales;            // one a block
    const unsigned char* group_scales;            // four a block
    const uint4* quants;                          // eight a block
    size_t stride, group_stride;                  // scales, or their upper bits, and bytes from row to row

    __device__ IQ4_XS(const __half* scale_plane, const unsigned short* high_plane, const unsigned char* group_plane,
                      const uint4* quant_plane, int row_length)
        : Blocks(row_length), scales(scale_plane), high_scales(high_plane), group_scales(group_plane),
          quants(quant_plane), stride(stride_of<__half>(n / 256)),
          group_stride(stride_of<unsigned char>(n / 64)) {}

    static constexpr bool HALF_SCALES = false;
    static constexpr int MINIMA = 0, SPAN = 1;
    __device__ int4 sixteen(int row, int unit) const {
        return iq4_nl_values(nibbles(quants[(size_t)row * (n / BLOCK) + unit / 2], unit % 2));
    }
    __device__ float scale(int row, int unit) const {
        int low = group_scales[row * group_stride + unit / 4] >> unit / 2 % 2 * 4 & 15;
        int high = high_scales[row * stride + unit / 16] >> unit % 16 / 2 * 2 & 3;
        return __half2float(scales[row * stride + unit / 16]) * (float)((low | high << 4) - 32);
    }
};
