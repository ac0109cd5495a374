// Types of 256 weights that are -1, 0 or 1 times one scale.
#pragma once
#include "weights.h"

// ---- TQ2_0: two bits a weight, 128 of them in 32 bytes as in Q2_K -------------------------------

#define PLANES_tq2_0(w) const uint4* __restrict__ w##_quants, const __half* __restrict__ w##_scales
#define ROWS_tq2_0(w, n) TQ2_0(w##_quants, w##_scales, n)

struct TQ2_0 : Blocks<TQ2_0> {
    const uint4* quants;                          // four a block
    const __half* scales;
    size_t stride;                                // scales from row to row

    __device__ TQ2_0(const uint4* quant_plane, const __half* scale_plane, int row_length)
        : Blocks(row_length), quants(quant_plane), scales(scale_plane), stride(stride_of<__half>(n / 256)) {}

    static constexpr bool HALF_SCALES = false, QUARTERS = true;
    static constexpr int MINIMA = 0, SPAN = 1, ROWS_AT_ONCE = 4;
    __device__ int4 sixteen(int row, int unit) const {
        uint4 q = quants[(size_t)row * (n / 64) + unit / 8 * 2 + unit % 2];
        return bytes_less(masked(shifted(q, unit % 8 / 2 * 2), 0x03030303u), 0x01010101u);
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 16]); }
};

// ---- TQ1_0: five weights a byte, as the digits of a fraction to the base 3 ----------------------
// A byte times 3^k, without what overflows, times 3 has digit k above its eight bits. The first 32 bytes hold weights
// 32 k + i, the next 16 weights 160 + 16 k + i, and the four of high_bits weights 240 + 4 k + i.

// Digit k of each byte, less 1.
__device__ inline int digits(unsigned bytes, int k) {
    unsigned power = (unsigned)(0x511b090301ull >> 8 * k) & 255;
    unsigned even = (bytes & 0x00ff00ffu) * power & 0x00ff00ffu, odd = (bytes >> 8 & 0x00ff00ffu) * power & 0x00ff00ffu;
    even = even * 3 >> 8 & 0x00030003u, odd = odd * 3 & 0x03000300u;
    return bytes_less((int)(even | odd), 0x01010101u);
}

#define PLANES_tq1_0(w) const uint4* __restrict__ w##_quants, const unsigned* __restrict__ w##_high_bits, \
                        const __half* __restrict__ w##_scales
#define ROWS_tq1_0(w, n) TQ1_0(w##_quants, w##_high_bits, w##_scales, n)

struct TQ1_0 : Blocks<TQ1_0> {
    const uint4* quants;                          // three a block
    const unsigned* high_bits;                    // one word a block
    const __half* scales;
    size_t stride, high_stride;                   // scales and words from row to row

    __device__ TQ1_0(const uint4* quant_plane, const unsigned* high_plane, const __half* scale_plane, int row_length)
        : Blocks(row_length), quants(quant_plane), high_bits(high_plane), scales(scale_plane),
          stride(stride_of<__half>(n / 256)), high_stride(stride_of<unsigned>(n / 256)) {}

    static constexpr bool HALF_SCALES = false;
    static constexpr int MINIMA = 0, SPAN = 1, ROWS_AT_ONCE = 4;
    __device__ int4 sixteen(int row, int unit) const {
        int u = unit % 16, block = unit / 16;
        if (u == 15) {
            unsigned q = high_bits[row * high_stride + block];
            return {digits(q, 0), digits(q, 1), digits(q, 2), digits(q, 3)};
        }
        uint4 q = quants[(size_t)row * (n / 256 * 3) + 3 * block + (u < 10 ? u % 2 : 2)];
        int k = u < 10 ? u / 2 : u - 10;
        return {digits(q.x, k), digits(q.y, k), digits(q.z, k), digits(q.w, k)};
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 16]); }
};
