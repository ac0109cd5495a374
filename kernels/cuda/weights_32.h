// Types with blocks of 32 weights.
//
// Byte k of a block's 16 holds weight k in its low nibble and weight k + 16 in its high one, in all of them
// but Q8_0.
#pragma once
#include "tables.h"
#include "weights.h"

// ---- Q8_0: int8 with a half scale --------------------------------------------------------------

#define PLANES_q8_0(w) const __half* __restrict__ w##_scales, const int4* __restrict__ w##_quants
#define ROWS_q8_0(w, n) Q8_0(w##_scales, w##_quants, n)

struct Q8_0 : Blocks<Q8_0> {
    const __half* scales;
    const int4* quants;                           // two of them a block
    size_t stride;                                // scales from row to row

    __device__ Q8_0(const __half* scale_plane, const int4* quant_plane, int row_length)
        : Blocks(row_length), scales(scale_plane), quants(quant_plane), stride(stride_of<__half>(n / BLOCK)) {}

    __device__ float add_piece(int row, int b, Quantised x, float s) const {
        const int4* w = quants + (size_t)row * (n / 16);
        int product = dot16(w[2 * b + 1], x.q[2 * b + 1], dot16(w[2 * b], x.q[2 * b], 0));
        return fmaf(__half2float(scales[row * stride + b]) * x.d[b], (float)product, s);
    }
    static constexpr bool HALF_SCALES = false, WAITS_DECODED = true;
    static constexpr int MINIMA = 0, SPAN = 1, PASSES = 2;
    __device__ int4 sixteen(int row, int unit) const { return quants[(size_t)row * (n / 16) + unit]; }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
    __device__ void eight(int row, int unit, float* w) const {
        uint2 q = ((const uint2*)(quants + (size_t)row * (n / 16)))[unit];
        float d = __half2float(scales[row * stride + unit / 4]);
        for (int k = 0; k < 4; k++) {
            w[k] = d * (float)(signed char)(q.x >> 8 * k);
            w[k + 4] = d * (float)(signed char)(q.y >> 8 * k);
        }
    }
};

// ---- Q4_0, Q4_1: a half scale; weight = scale * (nibble - 8), or scale * nibble + minimum -------

#define PLANES_q4_0(w) const __half* __restrict__ w##_scales, const uint4* __restrict__ w##_quants
#define ROWS_q4_0(w, n) Q4_0(w##_scales, w##_quants, n)

struct Q4_0 : Blocks<Q4_0> {
    const __half* scales;
    const uint4* quants;                          // one a block
    size_t stride;                                // scales from row to row

    __device__ Q4_0(const __half* scale_plane, const uint4* quant_plane, int row_length)
        : Blocks(row_length), scales(scale_plane), quants(quant_plane), stride(stride_of<__half>(n / BLOCK)) {}

    struct Weights { uint4 q; __half d; };
    __device__ Weights weights(int row, int b) const {
        return {quants[(size_t)row * (n / BLOCK) + b], scales[row * stride + b]};
    }
    __device__ float add_weights(const Weights& w, int b, Quantised x, float s) const {
        int product = dot16(low_nibbles(w.q), x.q[2 * b], 0);
        product = dot16(low_nibbles(shifted(w.q, 4)), x.q[2 * b + 1], product);
        return fmaf(__half2float(w.d) * x.d[b], (float)(product - 8 * x.sum[b]), s);
    }
    static constexpr bool HALF_SCALES = false, WAITS_DECODED = true, READS_AHEAD = true;
    static constexpr int MINIMA = 0, SPAN = 1, PASSES = 2;  // four would spill on sm_75
    __device__ int4 sixteen(int row, int unit) const {
        return bytes_less(nibbles(quants[(size_t)row * (n / BLOCK) + unit / 2], unit % 2), 0x08080808u);
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
    // A unit is four bytes of a block: four weights, and the four that lie 16 columns after them.
    __device__ int column(int unit, int k) const {
        return unit / 4 * BLOCK + unit % 4 * 4 + k % 4 + k / 4 * 16;
    }
    __device__ void eight(int row, int unit, float* w) const {
        unsigned q = ((const unsigned*)(quants + (size_t)row * (n / BLOCK)))[unit];
        float d = __half2float(scales[row * stride + unit / 4]);
        for (int k = 0; k < 4; k++) {
            w[k] = d * (float)((int)(q >> 8 * k & 15) - 8);
            w[k + 4] = d * (float)((int)(q >> (8 * k + 4) & 15) - 8);
        }
    }
};

#define PLANES_q4_1(w) const __half* __restrict__ w##_scales, const __half* __restrict__ w##_minima, \
                       const uint4* __restrict__ w##_quants
#define ROWS_q4_1(w, n) Q4_1(w##_scales, w##_minima, w##_quants, n)

struct Q4_1 : Blocks<Q4_1> {
    const __half *scales, *minima;
    const uint4* quants;                          // one a block
    size_t stride;                                // scales, and minima, from row to row

    __device__ Q4_1(const __half* scale_plane, const __half* minimum_plane, const uint4* quant_plane, int row_length)
        : Blocks(row_length), scales(scale_plane), minima(minimum_plane), quants(quant_plane),
          stride(stride_of<__half>(n / BLOCK)) {}

    __device__ float add_piece(int row, int b, Quantised x, float s) const {
        uint4 q = quants[(size_t)row * (n / BLOCK) + b];
        int product = dot16(low_nibbles(q), x.q[2 * b], 0);
        product = dot16(low_nibbles(shifted(q, 4)), x.q[2 * b + 1], product);
        s = fmaf(__half2float(scales[row * stride + b]) * x.d[b], (float)product, s);
        return fmaf(__half2float(minima[row * stride + b]), x.d[b] * (float)x.sum[b], s);
    }
    static constexpr bool HALF_SCALES = false;
    static constexpr int MINIMA = 1, SPAN = 1, PASSES = 2, ROWS_AT_ONCE = 4;
    __device__ int4 sixteen(int row, int unit) const {
        return nibbles(quants[(size_t)row * (n / BLOCK) + unit / 2], unit % 2);
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
    __device__ float minimum(int row, int unit) const { return -__half2float(minima[row * stride + unit / 2]); }
};

// ---- Q5_0, Q5_1: the same with five bits; weight = scale * (number - 16), or scale * number + minimum ----
// Bit k of a block's high bits is the fifth bit of weight k.

__device__ inline int4 with_fifth(int4 low, unsigned bits) { return both(low, shifted_up(sixteen_bits(bits), 4)); }

#define PLANES_q5_0(w) const __half* __restrict__ w##_scales, const unsigned* __restrict__ w##_high_bits, \
                       const uint4* __restrict__ w##_quants
#define ROWS_q5_0(w, n) Q5_0(w##_scales, w##_high_bits, w##_quants, n)

struct Q5_0 : Blocks<Q5_0> {
    const __half* scales;
    const unsigned* high_bits;                    // one word a block
    const uint4* quants;                          // one a block
    size_t stride, high_stride;                   // scales and words from row to row

    __device__ Q5_0(const __half* scale_plane, const unsigned* high_plane, const uint4* quant_plane,
                    int row_length)
        : Blocks(row_length), scales(scale_plane), high_bits(high_plane), quants(quant_plane),
          stride(stride_of<__half>(n / BLOCK)), high_stride(stride_of<unsigned>(n / BLOCK)) {}

    __device__ float add_piece(int row, int b, Quantised x, float s) const {
        uint4 q = quants[(size_t)row * (n / BLOCK) + b];
        unsigned bits = high_bits[row * high_stride + b];
        int product = dot16(with_fifth(low_nibbles(q), bits), x.q[2 * b], 0);
        product = dot16(with_fifth(low_nibbles(shifted(q, 4)), bits >> 16), x.q[2 * b + 1], product);
        return fmaf(__half2float(scales[row * stride + b]) * x.d[b], (float)(product - 16 * x.sum[b]), s);
    }
    static constexpr bool HALF_SCALES = false, WAITS_DECODED = true;
    static constexpr int MINIMA = 0, SPAN = 1, PASSES = 2;
    __device__ int4 sixteen(int row, int unit) const {
        unsigned bits = high_bits[row * high_stride + unit / 2] >> unit % 2 * 16;
        int4 low = nibbles(quants[(size_t)row * (n / BLOCK) + unit / 2], unit % 2);
        return bytes_less(with_fifth(low, bits), 0x10101010u);
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
};

#define PLANES_q5_1(w) const __half* __restrict__ w##_scales, const __half* __restrict__ w##_minima, \
                       const unsigned* __restrict__ w##_high_bits, const uint4* __restrict__ w##_quants
#define ROWS_q5_1(w, n) Q5_1(w##_scales, w##_minima, w##_high_bits, w##_quants, n)

struct Q5_1 : Blocks<Q5_1> {
    const __half *scales, *minima;
    const unsigned* high_bits;                    // one word a block
    const uint4* quants;                          // one a block
    size_t stride, high_stride;                   // scales, or minima, and words from row to row

    __device__ Q5_1(const __half* scale_plane, const __half* minimum_plane, const unsigned* high_plane,
                    const uint4* quant_plane, int row_length)
        : Blocks(row_length), scales(scale_plane), minima(minimum_plane), high_bits(high_plane),
          quants(quant_plane), stride(stride_of<__half>(n / BLOCK)), high_stride(stride_of<unsigned>(n / BLOCK)) {}

    struct Weights { uint4 q; unsigned bits; __half d, m; };
    __device__ Weights weights(int row, int b) const {
        return {quants[(size_t)row * (n / BLOCK) + b], high_bits[row * high_stride + b], scales[row * stride + b],
                minima[row * stride + b]};
    }
    __device__ float add_weights(const Weights& w, int b, Quantised x, float s) const {
        int product = dot16(with_fifth(low_nibbles(w.q), w.bits), x.q[2 * b], 0);
        product = dot16(with_fifth(low_nibbles(shifted(w.q, 4)), w.bits >> 16), x.q[2 * b + 1], product);
        s = fmaf(__half2float(w.d) * x.d[b], (float)product, s);
        return fmaf(__half2float(w.m), x.d[b] * (float)x.sum[b], s);
    }
    static constexpr bool HALF_SCALES = false, READS_AHEAD = true;
    static constexpr int MINIMA = 1, SPAN = 1, ROWS_AT_ONCE = 4;  // two passes at once spill on sm_80
    __device__ int4 sixteen(int row, int unit) const {
        unsigned bits = high_bits[row * high_stride + unit / 2] >> unit % 2 * 16;
        return with_fifth(nibbles(quants[(size_t)row * (n / BLOCK) + unit / 2], unit % 2), bits);
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
    __device__ float minimum(int row, int unit) const { return -__half2float(minima[row * stride + unit / 2]); }
};

// ---- IQ4_NL, MXFP4: the nibble is a place in a table of 16 int8 --------------------------------

#define PLANES_iq4_nl(w) PLANES_q4_0(w)
#define ROWS_iq4_nl(w, n) IQ4_NL(w##_scales, w##_quants, n)

struct IQ4_NL : Blocks<IQ4_NL> {
    const __half* scales;
    const uint4* quants;                          // one a block
    size_t stride;                                // scales from row to row

    __device__ IQ4_NL(const __half* scale_plane, const uint4* quant_plane, int row_length)
        : Blocks(row_length), scales(scale_plane), quants(quant_plane), stride(stride_of<__half>(n / BLOCK)) {}

    struct Weights { uint4 q; __half d; };
    __device__ Weights weights(int row, int b) const {
        return {quants[(size_t)row * (n / BLOCK) + b], scales[row * stride + b]};
    }
    __device__ float add_weights(const Weights& w, int b, Quantised x, float s) const {
        int product = dot16(iq4_nl_values(nibbles(w.q, 0)), x.q[2 * b], 0);
        product = dot16(iq4_nl_values(nibbles(w.q, 1)), x.q[2 * b + 1], product);
        return fmaf(__half2float(w.d) * x.d[b], (float)product, s);
    }
    static constexpr bool HALF_SCALES = false, WAITS_DECODED = true, READS_AHEAD = true;
    static constexpr int MINIMA = 0, SPAN = 1;
    __device__ int4 sixteen(int row, int unit) const {
        return iq4_nl_values(nibbles(quants[(size_t)row * (n / BLOCK) + unit / 2], unit % 2));
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
};

// The scale is a power of two by its exponent alone; the table has twice the numbers, hence half of it.
#define PLANES_mxfp4(w) const unsigned char* __restrict__ w##_scales, const uint4* __restrict__ w##_quants
#define ROWS_mxfp4(w, n) MXFP4(w##_scales, w##_quants, n)

struct MXFP4 : Blocks<MXFP4> {
    const unsigned char* scales;
    const uint4* quants;                          // one a block
    size_t stride;                                // scales from row to row

    __device__ MXFP4(const unsigned char* scale_plane, const uint4* quant_plane, int row_length)
        : Blocks(row_length), scales(scale_plane), quants(quant_plane),
          stride(stride_of<unsigned char>(n / BLOCK)) {}

    struct Weights { uint4 q; unsigned char exponent; };
    __device__ Weights weights(int row, int b) const {
        return {quants[(size_t)row * (n / BLOCK) + b], scales[row * stride + b]};
    }
    __device__ float add_weights(const Weights& w, int b, Quantised x, float s) const {
        int product = dot16(mxfp4_values(nibbles(w.q, 0)), x.q[2 * b], 0);
        product = dot16(mxfp4_values(nibbles(w.q, 1)), x.q[2 * b + 1], product);
        return fmaf(of_exponent(w.exponent) * x.d[b], (float)product, s);
    }
    static constexpr bool HALF_SCALES = false, WAITS_DECODED = true, READS_AHEAD = true;
    static constexpr int MINIMA = 0, SPAN = 1;
    __device__ int4 sixteen(int row, int unit) const {
        return mxfp4_values(nibbles(quants[(size_t)row * (n / BLOCK) + unit / 2], unit % 2));
    }
    __device__ float scale(int row, int unit) const { return of_exponent(scales[row * stride + unit / 2]); }
    __device__ static float of_exponent(int exponent) {
        return __int_as_float(exponent < 2 ? 0x00200000 << exponent : (exponent - 1) << 23);
    }
};
