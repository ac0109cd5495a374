// F16 and BF16: rows of halves, which tensor cores multiply by float32 inputs where there are any; without them they
// are plain (weights.h).
//
// An input's numbers are handed over as sums of two F16 or three BF16, so that nothing but the products' sums is
// rounded much: for F16 what is left of a number is below 2^-23 of it, or 2^-39 of the largest of its piece, for BF16
// nothing.
//
// The order of a product's sums, for a warp and for a tile: 32 weights are a piece, and piece p adds to chain p % 8 by
// fmaf(scale, products, chain). Its products with each term of the input are two mma, of 16 weights each, the second of
// which adds to the first; they are added as first + second term, or first + (second + third). Chains are added in
// their order, and what lies behind a row's end is zero.
//
// Inputs are the rows of an mma, the first term in rows 0 to 7 and the second of the same inputs in rows 8 to 15, and
// weights its columns. Of a piece lane 4 g + t has numbers 8 t to 8 t + 7, the words of 16 bytes: words 0 and 1 go to
// the first mma, 2 and 3 to the second.
#pragma once
#include "halves.h"
#include "weights.h"

#define PLANES_f16(w) const __half* __restrict__ w
#define PLANES_bf16(w) const unsigned short* __restrict__ w
#define ROWS_f16(w, n) Halves<__half>(w, n)
#define ROWS_bf16(w, n) Halves<unsigned short>(w, n)

#ifdef TENSOR_CORES
// Split<T>::of(x, words): eight numbers of an input as sums of TERMS halves, the first the largest, two in a word,
// times what is returned, a power of two. Four neighbouring lanes have a piece, and come together.
template <class T> struct Split;

// The piece's largest number becomes 2^14 to 2^15. What is not finite stays so, as infinity less infinity is NaN.
template <> struct Split<__half> {
    static constexpr int TERMS = 2;
    static constexpr bool HAS_SCALE = true;
    __device__ static float of(const float (&x)[8], unsigned (&words)[TERMS][4]) {
        float most = 0.f;
        for (int k = 0; k < 8; k++) most = fmaxf(most, fabsf(x[k]));
        for (int d = 1; d < 4; d *= 2) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, d));
        int exponent = max(__float_as_int(most) >> 23, 15);  // so that both powers are normal numbers
        float to_halves = __int_as_float((268 - exponent) << 23);
        for (int k = 0; k < 4; k++) {
            uint2 both = in_halves(x[2 * k] * to_halves, x[2 * k + 1] * to_halves);
            words[0][k] = both.x, words[1][k] = both.y;
        }
        return __int_as_float((exponent - 14) << 23);
    }
    __device__ static void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        mma_f16(c, a, b);
    }
};

// Eight bits of the 24 in each: cut off, not rounded, so that no large number becomes infinity.
template <> struct Split<unsigned short> {
    static constexpr int TERMS = 3;
    static constexpr bool HAS_SCALE = false;
    __device__ static float of(const float (&x)[8], unsigned (&words)[TERMS][4]) {
        for (int k = 0; k < 4; k++) {
            float a = x[2 * k], b = x[2 * k + 1];
            for (int term = 0; term < TERMS; term++) {
                unsigned low = (unsigned)__float_as_int(a), high = (unsigned)__float_as_int(b);
                words[term][k] = __byte_perm(low, high, 0x7632);
                a -= bf16(low >> 16), b -= bf16(high >> 16);
            }
        }
        return 1.f;
    }
    __device__ static void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        mma_bf16(c, a, b);
    }
};

// c += products with a piece of eight rows: x[0] has what lanes give to the first mma for their inputs, x[1] to the
// second.
template <class T> __device__ inline void add_products(float (&c)[4], const uint4 (&x)[2], int4 w) {
    Split<T>::mma(c, {x[0].x, x[0].y, x[0].z, x[0].w}, {(unsigned)w.x, (unsigned)w.y});
    Split<T>::mma(c, {x[1].x, x[1].y, x[1].z, x[1].w}, {(unsigned)w.z, (unsigned)w.w});
}
// Two terms of an input, `a` for the rows 0 to 7 and `b` for the others.
__device__ inline void for_mma(uint4 (&x)[2], const unsigned (&a)[4], const unsigned (&b)[4]) {
    x[0] = {a[0], b[0], a[1], b[1]}, x[1] = {a[2], b[2], a[3], b[3]};
}

// T: __half, or unsigned short for BF16.
template <class T> struct Halves : Plain<T> {
    static constexpr int CHAINS = 8;
    __device__ Halves(const T* plane, int row_length) : Plain<T>(plane, row_length) {}

    // The pieces chain after chain, from piece 0 on; n_pieces behind the last.
    __device__ int n_pieces() const { return (this->n + 31) / 32; }
    __device__ bool ends_chain(int piece) const { return piece + CHAINS >= n_pieces(); }
    __device__ int piece_behind(int piece) const {
        if (!ends_chain(piece)) return piece + CHAINS;
        return piece % CHAINS < CHAINS - 1 ? piece % CHAINS + 1 : n_pieces();
    }

    // Units of eight weights, four a piece.
    __device__ bool is_whole(int unit) const { return 8 * unit + 8 <= this->n; }
    __device__ const int4* whole(int row, int unit) const {
        return (const int4*)(this->values + row * this->stride) + unit;
    }
    // A unit that the row's end cuts, or that lies behind it.
    __device__ int4 cut(int row, int unit) const {
        const unsigned short* bits = (const unsigned short*)(this->values + row * this->stride) + 8 * unit;
        unsigned words[4];
        for (int k = 0; k < 4; k++) {
            int left = this->n - 8 * unit - 2 * k;
            words[k] = (left > 0 ? bits[2 * k] : 0u) | (left > 1 ? bits[2 * k + 1] : 0u) << 16;
        }
        return {(int)words[0], (int)words[1], (int)words[2], (int)words[3]};
    }

    // Chain g is input g of what is multiplied, and its own pieces column g: of the products of 8 inputs by 8 columns
    // eight are used, (g, g) in lane 4 g + g / 2.
    __device__ float dot(int row, Floats input) const {
        float sum = this->n % 8 == 0 ? chain<true>(row, input.x) : chain<false>(row, input.x);
        int g = lane() / 4;
        return sum_in_order(sum, lane() % 4 == g / 2 ? g : CHAINS, CHAINS);
    }
    template <bool ALL_WHOLE> __device__ float chain(int row, const float* x) const {
        [[maybe_unused]] constexpr int PASSES = ALL_WHOLE && Split<T>::TERMS == 2 ? 2 : 1;  // of BF16 two would spill
        float sum = 0.f;
        UNROLL(PASSES)
        for (int eights = 0; eights < this->n; eights += 8 * WARP) {
            int unit = eights / 8 + lane();
            int4 w = {0, 0, 0, 0};
            float u[8] = {}, products[4] = {}, thirds[4] = {};
            if (is_whole(unit)) {
                w = *whole(row, unit);
                if (ALL_WHOLE) load8(x + 8 * unit, u);
                else load_eight(x, unit, this->n, u);
            } else if (!ALL_WHOLE)
                w = cut(row, unit), load_eight(x, unit, this->n, u);
            unsigned words[Split<T>::TERMS][4];
            uint4 given[2];
            float scale = Split<T>::of(u, words);
            for_mma(given, words[0], words[1]);
            add_products<T>(products, given, w);
            if constexpr (Split<T>::TERMS == 3) {
                for_mma(given, words[2], words[2]);
                add_products<T>(thirds, given, w);
                products[2] += thirds[0], products[3] += thirds[1];
            }
            bool is_odd = lane() / 4 % 2;
            float first = is_odd ? products[1] : products[0], second = is_odd ? products[3] : products[2];
            sum = fmaf(scale, first + second, sum);
        }
        return sum;
    }
};
#else
template <class T> using Halves = Plain<T>;
#endif
