// Rows of each weight type, read from the planes that planes.py makes.
//
// A type has up to three ways to be read. `dot` is the product of one row with an input, one warp
// together: the lanes take pieces in turn and add their sums in a fixed order. `eight` gives eight
// weights of a row to one thread, for products with a transposed matrix; `column` says where they
// belong. `sixteen` gives 16 consecutive weights of a row as int8, and `scale` what they are to be
// multiplied by; the two sixteens of a block of 32 have one scale unless HALF_SCALES is true.
#pragma once
#include "common.h"

// ---- inputs: what a row is multiplied with -----------------------------------------------------

// float32 inputs, for weights that are not quantised. Kernels take them as float4*, so that the
// first token's are aligned; the others' are where n is a multiple of four.
struct Floats {
    const float* x;
    __device__ Floats of_token(int t, int n) const { return {x + (size_t)t * n}; }
};

// Inputs as `quantise` leaves them: int8, a scale and a sum for each block of 32.
struct Quantised {
    const int4* q;
    const float* d;
    const int* sum;
    __device__ Quantised of_token(int t, int n) const {
        size_t block = (size_t)t * (n / BLOCK);
        return {q + 2 * block, d + block, sum + block};
    }
};

__device__ inline int dot16(int4 a, int4 b, int s) {
    return __dp4a(a.w, b.w, __dp4a(a.z, b.z, __dp4a(a.y, b.y, __dp4a(a.x, b.x, s))));
}
// Bytes of 0 to 127, less an offset of at most 128 in each byte: no byte borrows from its neighbour.
__device__ inline int bytes_less(int bytes, unsigned offsets) {
    return (int)((((unsigned)bytes | 0x80808080u) - offsets) ^ 0x80808080u);
}
__device__ inline int4 bytes_less(int4 v, unsigned offsets) {
    return {bytes_less(v.x, offsets), bytes_less(v.y, offsets), bytes_less(v.z, offsets),
            bytes_less(v.w, offsets)};
}
__device__ inline size_t padded(size_t bytes) { return (bytes + 15) / 16 * 16; }

// ---- plain types: one plane of values ----------------------------------------------------------

__device__ inline float bf16(unsigned bits) { return __int_as_float((int)(bits << 16)); }
__device__ inline float value(float v) { return v; }
__device__ inline float value(__half v) { return __half2float(v); }
__device__ inline float value(unsigned short v) { return bf16(v); }

// Four or eight values at once; the row is padded to 16 bytes, so that the loads stay inside it.
__device__ inline void load4(const float* p, float* w) {
    float4 a = *(const float4*)p;
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
}
template <class T> __device__ inline void load4(const T* p, float* w) {
    union { uint2 bits; T values[4]; } u = {*(const uint2*)p};
    for (int k = 0; k < 4; k++) w[k] = value(u.values[k]);
}
__device__ inline void load8(const float* p, float* w) {
    load4(p, w), load4(p + 4, w + 4);
}
template <class T> __device__ inline void load8(const T* p, float* w) {
    union { uint4 bits; T values[8]; } u = {*(const uint4*)p};
    for (int k = 0; k < 8; k++) w[k] = value(u.values[k]);
}
// N values (four or eight), of which a row has only n: zeros after its end. whole: whether vectors may be read.
template <int N, class T> __device__ inline void load_some(const T* p, int n, bool whole, float* w) {
    if (!whole) for (int k = 0; k < N; k++) w[k] = k < n ? value(p[k]) : 0.f;
    else if constexpr (N == 8) load8(p, w);
    else load4(p, w);
}

// T: float, __half, or unsigned short for BF16.
template <class T> struct Plain {
    const T* values;
    int n;
    size_t stride;                                // values from row to row

    __device__ Plain(const T* plane, int row_length)
        : values(plane), n(row_length), stride(padded((size_t)row_length * sizeof(T)) / sizeof(T)) {}

    __device__ float dot(int row, Floats input) const {
        const T* w = values + row * stride;
        const float* x = input.x;
        int whole = n / 8;
        float s = 0.f, v[8], u[8];
        if (n % 4 == 0)                           // then x is aligned
            UNROLL(2)
            for (int i = lane(); i < whole; i += WARP) {
                load8(w + 8 * i, v), load8(x + 8 * i, u);
                for (int k = 0; k < 8; k++) s = fmaf(v[k], u[k], s);
            }
        else
            UNROLL(1)
            for (int i = lane(); i < whole; i += WARP) {
                load8(w + 8 * i, v);
                for (int k = 0; k < 8; k++) s = fmaf(v[k], x[8 * i + k], s);
            }
        if (8 * whole + lane() < n) s = fmaf(value(w[8 * whole + lane()]), x[8 * whole + lane()], s);
        return warp_sum(s);
    }
    __device__ int n_units() const { return (n + 7) / 8; }
    __device__ int column(int unit, int k) const { return 8 * unit + k; }
    __device__ void eight(int row, int unit, float* w) const {
        load_some<8>(values + row * stride + 8 * unit, n - 8 * unit, 8 * unit + 8 <= n, w);
    }
};

// ---- Q8_0: blocks of 32 int8 with a half scale -------------------------------------------------

struct Q8_0 {
    const __half* scales;
    const int4* quants;                           // two of them a block
    int n;
    size_t stride;                                // scales from row to row

    __device__ Q8_0(const __half* scale_plane, const int4* quant_plane, int row_length)
        : scales(scale_plane), quants(quant_plane), n(row_length),
          stride(padded(row_length / BLOCK * sizeof(__half)) / sizeof(__half)) {}

    __device__ float dot(int row, Quantised x) const {
        const int4* w = quants + (size_t)row * (n / 16);
        const __half* d = scales + row * stride;
        float s = 0.f;
        UNROLL(2)
        for (int b = lane(); b < n / BLOCK; b += WARP) {
            int product = dot16(w[2 * b + 1], x.q[2 * b + 1], dot16(w[2 * b], x.q[2 * b], 0));
            s = fmaf(__half2float(d[b]) * x.d[b], (float)product, s);
        }
        return warp_sum(s);
    }
    static constexpr bool HALF_SCALES = false;
    __device__ int4 sixteen(int row, int unit) const { return quants[(size_t)row * (n / 16) + unit]; }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
    __device__ int n_units() const { return n / 8; }
    __device__ int column(int unit, int k) const { return 8 * unit + k; }
    __device__ void eight(int row, int unit, float* w) const {
        uint2 q = ((const uint2*)(quants + (size_t)row * (n / 16)))[unit];
        float d = __half2float(scales[row * stride + unit / 4]);
        for (int k = 0; k < 4; k++) {
            w[k] = d * (float)(signed char)(q.x >> 8 * k);
            w[k + 4] = d * (float)(signed char)(q.y >> 8 * k);
        }
    }
};

// ---- Q4_0: 32 nibbles with a half scale; weight = scale * (nibble - 8) -------------------------
// Byte k of a block holds weight k in its low nibble and weight k + 16 in its high one.

__device__ inline int4 low_nibbles(uint4 q) {
    const unsigned low = 0x0f0f0f0f;
    return {(int)(q.x & low), (int)(q.y & low), (int)(q.z & low), (int)(q.w & low)};
}
__device__ inline uint4 shifted(uint4 q) { return {q.x >> 4, q.y >> 4, q.z >> 4, q.w >> 4}; }

struct Q4_0 {
    const __half* scales;
    const uint4* quants;                          // one a block
    int n;
    size_t stride;                                // scales from row to row

    __device__ Q4_0(const __half* scale_plane, const uint4* quant_plane, int row_length)
        : scales(scale_plane), quants(quant_plane), n(row_length),
          stride(padded(row_length / BLOCK * sizeof(__half)) / sizeof(__half)) {}

    __device__ float dot(int row, Quantised x) const {
        const uint4* w = quants + (size_t)row * (n / BLOCK);
        const __half* d = scales + row * stride;
        float s = 0.f;
        UNROLL(2)                                 // four would spill on sm_75
        for (int b = lane(); b < n / BLOCK; b += WARP) {
            uint4 q = w[b];
            int product = dot16(low_nibbles(q), x.q[2 * b], 0);
            product = dot16(low_nibbles(shifted(q)), x.q[2 * b + 1], product);
            s = fmaf(__half2float(d[b]) * x.d[b], (float)(product - 8 * x.sum[b]), s);
        }
        return warp_sum(s);
    }
    static constexpr bool HALF_SCALES = false;
    __device__ int4 sixteen(int row, int unit) const {
        uint4 q = quants[(size_t)row * (n / BLOCK) + unit / 2];
        return bytes_less(low_nibbles(unit % 2 ? shifted(q) : q), 0x08080808u);
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
    // A unit is four bytes of a block: four weights, and the four that lie 16 columns after them.
    __device__ int n_units() const { return n / 8; }
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

// ---- Q5_0: 32 numbers of five bits with a half scale; weight = scale * (number - 16) -----------
// Nibbles as in Q4_0; bit k of a block's high bits is the fifth bit of weight k.

// Bits 0 to 3 of `bits`, each to bit 4 of a byte of its own.
__device__ inline int fifth(unsigned bits) {
    return (int)(((bits & 15) * 0x00204081u & 0x01010101u) << 4);
}
__device__ inline int4 with_fifth(int4 low, unsigned bits) {
    return {low.x | fifth(bits), low.y | fifth(bits >> 4), low.z | fifth(bits >> 8),
            low.w | fifth(bits >> 12)};
}

struct Q5_0 {
    const __half* scales;
    const unsigned* high_bits;                    // one word a block
    const uint4* quants;                          // one a block
    int n;
    size_t stride, high_stride;                   // scales and words from row to row

    __device__ Q5_0(const __half* scale_plane, const unsigned* high_plane, const uint4* quant_plane,
                    int row_length)
        : scales(scale_plane), high_bits(high_plane), quants(quant_plane), n(row_length),
          stride(padded(row_length / BLOCK * sizeof(__half)) / sizeof(__half)),
          high_stride(padded(row_length / BLOCK * sizeof(unsigned)) / sizeof(unsigned)) {}

    __device__ float dot(int row, Quantised x) const {
        const uint4* w = quants + (size_t)row * (n / BLOCK);
        const unsigned* high = high_bits + row * high_stride;
        const __half* d = scales + row * stride;
        float s = 0.f;
        UNROLL(2)
        for (int b = lane(); b < n / BLOCK; b += WARP) {
            uint4 q = w[b];
            unsigned bits = high[b];
            int product = dot16(with_fifth(low_nibbles(q), bits), x.q[2 * b], 0);
            product = dot16(with_fifth(low_nibbles(shifted(q)), bits >> 16), x.q[2 * b + 1], product);
            s = fmaf(__half2float(d[b]) * x.d[b], (float)(product - 16 * x.sum[b]), s);
        }
        return warp_sum(s);
    }
    static constexpr bool HALF_SCALES = false;
    __device__ int4 sixteen(int row, int unit) const {
        uint4 q = quants[(size_t)row * (n / BLOCK) + unit / 2];
        unsigned bits = high_bits[row * high_stride + unit / 2] >> unit % 2 * 16;
        return bytes_less(with_fifth(low_nibbles(unit % 2 ? shifted(q) : q), bits), 0x10101010u);
    }
    __device__ float scale(int row, int unit) const { return __half2float(scales[row * stride + unit / 2]); }
};

// ---- Q6_K: 256 numbers of six bits; weight = scale * scale of its 16 * (number - 32) -----------
// Half a block, 128 weights, has 64 bytes of low nibbles and 32 of upper bits. Its sixteen number g
// lies in bytes 16 (g % 4) of the nibbles, low ones for g < 4, and in bytes 16 (g % 2) of the upper
// bits, from bit 2 (g / 2) on.

__device__ inline uint4 shifted(uint4 q, int by) { return {q.x >> by, q.y >> by, q.z >> by, q.w >> by}; }
// Each byte's two lowest bits of `upper` over a nibble of `low`, minus 32.
__device__ inline int six(int low, unsigned upper) { return low | (int)((upper & 0x03030303u) << 4); }
__device__ inline int4 six_bits(int4 low, uint4 upper) {
    int4 v{six(low.x, upper.x), six(low.y, upper.y), six(low.z, upper.z), six(low.w, upper.w)};
    return bytes_less(v, 0x20202020u);
}

struct Q6_K {
    const uint4 *quants, *high_bits;              // eight and four of them a block
    const signed char* group_scales;              // 16 of them a block
    const __half* scales;
    int n;
    size_t stride;                                // scales from row to row

    __device__ Q6_K(const uint4* quant_plane, const uint4* high_plane, const signed char* group_plane,
                    const __half* scale_plane, int row_length)
        : quants(quant_plane), high_bits(high_plane), group_scales(group_plane), scales(scale_plane),
          n(row_length), stride(padded(row_length / 256 * sizeof(__half)) / sizeof(__half)) {}

    // A lane takes four sixteens that share their bytes: 0, 2, 4, 6 of a half, or 1, 3, 5, 7.
    __device__ float dot(int row, Quantised x) const {
        const uint4* low = quants + (size_t)row * (n / 32);
        const uint4* high = high_bits + (size_t)row * (n / 64);
        const signed char* of_group = group_scales + (size_t)row * (n / 16);
        float s = 0.f;
        UNROLL(1)                                 // there are seven 16-byte loads in it as it is
        for (int i = lane(); i < n / 64; i += WARP) {
            int half = i / 2, side = i % 2, first = 8 * half + side;
            uint4 a = low[4 * half + side], b = low[4 * half + side + 2], upper = high[i];
            float d = __half2float(scales[row * stride + i / 4]);
            UNROLL(4)
            for (int k = 0; k < 4; k++) {
                int unit = first + 2 * k;
                uint4 nibbles = k % 2 ? b : a;
                int4 w = six_bits(low_nibbles(k < 2 ? nibbles : shifted(nibbles)), shifted(upper, 2 * k));
                float scale = d * (float)of_group[unit] * x.d[unit / 2];
                s = fmaf(scale, (float)dot16(w, x.q[unit], 0), s);
            }
        }
        return warp_sum(s);
    }
    static constexpr bool HALF_SCALES = true;
    __device__ int4 sixteen(int row, int unit) const {
        int half = unit / 8, g = unit % 8;
        uint4 q = quants[(size_t)row * (n / 32) + 4 * half + g % 4];
        uint4 upper = high_bits[(size_t)row * (n / 64) + 2 * half + g % 2];
        return six_bits(low_nibbles(g < 4 ? q : shifted(q)), shifted(upper, g / 2 * 2));
    }
    __device__ float scale(int row, int unit) const {
        float of_group = (float)group_scales[(size_t)row * (n / 16) + unit];
        return __half2float(scales[row * stride + unit / 16]) * of_group;
    }
};
