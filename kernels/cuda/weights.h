// Rows of each weight type, read from the planes that repack.py makes.
//
// A type has two ways to be read. `dot` is the product of one row with an input, one warp together:
// the lanes take pieces in turn and add their sums in a fixed order. `eight` gives eight weights of a
// row to one thread, for products with a transposed matrix; `column` says where they belong.
#pragma once
#include "common.h"

// ---- inputs: what a row is multiplied with -----------------------------------------------------

// float32 activations, for weights that are not quantised.
struct Floats {
    const float* x;
    __device__ Floats of_token(int t, int n) const { return {x + (size_t)t * n}; }
};

// Activations as `quantise` leaves them: int8, a scale and a sum for each block of 32.
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
        float s = 0.f, v[8];
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
