// Rows of each weight type, read from the planes that planes.py makes.
//
// A quantised type is a struct that gives 16 consecutive weights of a row as int8: weight = scale * number -
// minimum. That is all that products need:
//
//   sixteen(row, unit)   the numbers of weights 16 unit to 16 unit + 15
//   scale(row, unit)     what they are multiplied by
//   minimum(row, unit)   what is taken away then, where MINIMA says so
//   HALF_SCALES          whether the two sixteens of a block of 32 may have different scales
//   MINIMA               0: there are none; 1: one a block of 32; 2: one a sixteen
//   SPAN                 how many neighbouring blocks of 32 lie in the same bytes: a lane takes them together
//   QUARTERS             whether each sixteen shares its bytes with three others of 128 weights: a lane takes
//                        sixteens 0, 2, 4, 6 of them, or 1, 3, 5, 7
//   PASSES               how many pieces a lane of a warp has on the way at a time: as many as registers hold
//   READS_AHEAD          whether a lane has the next pass's weights on the way while it multiplies: where registers
//                        hold them. Such a type says what it reads of a piece, and then what becomes of it, with
//                        Weights, weights(row, piece) and add_weights(weights, piece, x, sum)
//   WAITS_DECODED        whether a thread of a tile has registers in which a row's next sixteen wait, decoded, while
//                        it multiplies
//   CUT_EIGHTS           whether a row may end within eight weights
//   ROWS_AT_ONCE         of a transposed matrix, that a thread has on the way: as many as registers hold
//
// `Blocks` makes the rest of it: `add_piece`, what a lane adds at a time; `dot`, the product of one row with an input,
// one warp together; `eight`, eight weights of a row as floats, for products with a transposed matrix, and `column`,
// where they belong. A type may have its own. Rows of few pieces share a warp (lanes.h).
//
// The order of a product's sums is one for a warp and for a tile of matmul.cu. What a lane takes at a time is a piece:
// SPAN blocks, four sixteens, or eight floats. Piece p adds to chain p % 32 by fmaf, number after number, and the
// chains are added in their order. A warp has a chain in each lane; a tile takes the pieces of chain 0, then those of
// chain 1, as `Pieces` lists them, in units of sixteen weights or of four floats. F16 and BF16 have an order of their
// own where there are tensor cores (weights_half.h).
//
// The types lie in weights_half.h (F16 and BF16), weights_32.h (blocks of 32), weights_k.h (of 256), weights_grid.h
// (whose numbers are points of a grid) and weights_ternary.h. Beside each stands how kernels take it: PLANES_q4_0(w),
// parameters for w's planes in the order of weight_table.py, and ROWS_q4_0(w, n), the rows made of them.
#pragma once
#include "lanes.h"

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
// From row to row of a plane with so many values of type T a row.
template <class T> __device__ inline size_t stride_of(int n_values) { return padded(n_values * sizeof(T)) / sizeof(T); }

// The pieces of a row, chain after chain.
struct Pieces {
    int n;
    // The i-th of them, and whether it is its chain's last. The first n % 32 chains have one more than the others.
    __device__ int at(int i, bool& is_last) const {
        int rest = n % WARP, shorter = n / WARP, in_longer = rest * (shorter + 1);
        bool is_longer = i < in_longer;
        if (!is_longer) i -= in_longer;
        int count = is_longer ? shorter + 1 : shorter, chain = i / count, place = i % count;
        is_last = place == count - 1;
        return (is_longer ? chain : chain + rest) + WARP * place;
    }
};

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

// Eight numbers of an input of n from 8 unit on, zeros behind its end.
__device__ inline void load_eight(const float* x, int unit, int n, float* u) {
    for (int k = 0; k < 8; k += 4) {
        int left = n - 8 * unit - k;
        load_some<4>(x + 8 * unit + k, left, n % 4 == 0 && left >= 4, u + k);
    }
}

// T: float, __half, or unsigned short for BF16.
template <class T> struct Plain {
    const T* values;
    int n;
    size_t stride;                                // values from row to row

    static constexpr int MINIMA = 0, ROWS_AT_ONCE = 8, LAID_UNITS = 2;
    static constexpr bool CUT_EIGHTS = true, WAITS_DECODED = true, MAY_BE_SHORT = false;
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
        if (lane() == whole % WARP)               // a last piece that has no eight
            for (int i = 8 * whole; i < n; i++) s = fmaf(value(w[i]), x[i], s);
        return sum_of_lanes(s);
    }
    __device__ static Lanes lanes() { return WHOLE_WARP; }
    __device__ Pieces pieces() const { return {n_units()}; }
    __device__ static constexpr int piece_units() { return 2; }  // of four floats
    __device__ static int unit_of(int piece, int k) { return 2 * piece + k; }
    __device__ int n_units() const { return (n + 7) / 8; }
    __device__ int column(int unit, int k) const { return 8 * unit + k; }
    __device__ void eight(int row, int unit, float* w) const {
        load_some<8>(values + row * stride + 8 * unit, n - 8 * unit, 8 * unit + 8 <= n, w);
    }
};

#define PLANES_f32(w) const float* __restrict__ w
#define ROWS_f32(w, n) Plain<float>(w, n)

// ---- what quantised types have in common -------------------------------------------------------

__device__ inline int sum16(int4 x) { return dot16(x, {0x01010101, 0x01010101, 0x01010101, 0x01010101}, 0); }

template <class Type> struct Blocks {
    static constexpr int ROWS_AT_ONCE = 8, LAID_UNITS = 1;
    static constexpr int PASSES = 1;
    static constexpr bool CUT_EIGHTS = false, QUARTERS = false, WAITS_DECODED = false;
    static constexpr bool MAY_BE_SHORT = true, READS_AHEAD = false;
    int n;                                        // weights of a row

    __device__ explicit Blocks(int row_length) : n(row_length) {}
    __device__ const Type& type() const { return *static_cast<const Type*>(this); }

    __device__ static constexpr int piece_units() { return Type::QUARTERS ? 4 : 2 * Type::SPAN; }
    __device__ Pieces pieces() const { return {n / 16 / piece_units()}; }
    __device__ static int unit_of(int piece, int k) {
        return Type::QUARTERS ? piece / 2 * 8 + piece % 2 + 2 * k : piece_units() * piece + k;
    }

    __device__ Lanes lanes() const { return lanes_for(pieces().n); }
    __device__ float dot(int row, Quantised x) const {
        if constexpr (Type::READS_AHEAD) return dot_ahead(row, x);
        [[maybe_unused]] constexpr int SPAN = Type::SPAN, PASSES = Type::PASSES;
        float s = 0.f;
        UNROLL(PASSES)
        for (int first = lane() * SPAN; first < pieces().n * SPAN; first += WARP * SPAN)  // counted in blocks: fewer
            s = type().add_piece(row, first / SPAN, x, s);                                // instructions
        return sum_of_lanes(s);
    }
    // The next pass's weights are on their way while those of a pass are multiplied. Behind a row's end it is the last
    // piece again, which is not added.
    __device__ float dot_ahead(int row, Quantised x) const {
        constexpr int PASSES = Type::PASSES, STEP = WARP * PASSES;
        int piece = lane(), end = pieces().n;
        typename Type::Weights next[PASSES];
        float s = 0.f;
        for (int k = 0; k < PASSES; k++) next[k] = type().weights(row, min(piece + WARP * k, end - 1));
        UNROLL(2)                                 // so that nothing is moved from `next` to `now`
        for (; piece + WARP * (2 * PASSES - 1) < end; piece += STEP) {
            typename Type::Weights now[PASSES];
            for (int k = 0; k < PASSES; k++) now[k] = next[k], next[k] = type().weights(row, piece + STEP + WARP * k);
            for (int k = 0; k < PASSES; k++) s = type().add_weights(now[k], piece + WARP * k, x, s);
        }
        for (int k = 0; k < PASSES; k++)
            if (piece + WARP * k < end) s = type().add_weights(next[k], piece + WARP * k, x, s);
        for (int k = PASSES; k < 2 * PASSES - 1; k++)
            if (piece + WARP * k < end) s = add_piece(row, piece + WARP * k, x, s);
        return sum_of_lanes(s);
    }
    __device__ float add_piece(int row, int piece, Quantised x, float s) const {
        if constexpr (Type::READS_AHEAD) return type().add_weights(type().weights(row, piece), piece, x, s);
        if constexpr (Type::QUARTERS)
            UNROLL(2)                             // four would spill
            for (int k = 0; k < 4; k++) s = add_sixteen(row, unit_of(piece, k), x, s);
        else
            UNROLL(2)
            for (int first = piece * Type::SPAN, b = first; b < first + Type::SPAN; b++) s = add_block(row, b, x, s);
        return s;
    }
    __device__ float add_block(int row, int b, Quantised x, float s) const {
        if constexpr (Type::HALF_SCALES || Type::MINIMA == 2)
            return add_sixteen(row, 2 * b + 1, x, add_sixteen(row, 2 * b, x, s));
        int product = dot16(type().sixteen(row, 2 * b), x.q[2 * b], 0);
        product = dot16(type().sixteen(row, 2 * b + 1), x.q[2 * b + 1], product);
        s = fmaf(type().scale(row, 2 * b) * x.d[b], (float)product, s);
        if constexpr (Type::MINIMA == 1) s = fmaf(-type().minimum(row, 2 * b), x.d[b] * (float)x.sum[b], s);
        return s;
    }
    __device__ float add_sixteen(int row, int unit, Quantised x, float s) const {
        int4 q = x.q[unit];
        s = fmaf(type().scale(row, unit) * x.d[unit / 2], (float)dot16(type().sixteen(row, unit), q, 0), s);
        if constexpr (Type::MINIMA == 2) s = fmaf(-type().minimum(row, unit), x.d[unit / 2] * (float)sum16(q), s);
        return s;
    }

    __device__ int n_units() const { return n / 8; }
    __device__ int column(int unit, int k) const { return 8 * unit + k; }
    __device__ void eight(int row, int unit, float* w) const {
        int4 q = type().sixteen(row, unit / 2);
        int low = unit % 2 ? q.z : q.x, high = unit % 2 ? q.w : q.y;
        float d = type().scale(row, unit / 2), m = 0.f;
        if constexpr (Type::MINIMA > 0) m = type().minimum(row, unit / 2);
        for (int k = 0; k < 4; k++) {
            w[k] = fmaf(d, (float)(signed char)(low >> 8 * k), -m);
            w[k + 4] = fmaf(d, (float)(signed char)(high >> 8 * k), -m);
        }
    }
};

// Bytes in four words, which are shifted together.
__device__ inline uint4 shifted(uint4 q, int by) { return {q.x >> by, q.y >> by, q.z >> by, q.w >> by}; }
__device__ inline int4 masked(uint4 q, unsigned mask) {
    return {(int)(q.x & mask), (int)(q.y & mask), (int)(q.z & mask), (int)(q.w & mask)};
}
__device__ inline int4 low_nibbles(uint4 q) { return masked(q, 0x0f0f0f0fu); }
// Nibbles of a block: the low ones for side 0, the high ones for side 1.
__device__ inline int4 nibbles(uint4 q, int side) { return low_nibbles(shifted(q, 4 * side)); }
__device__ inline int4 both(int4 a, int4 b) { return {a.x | b.x, a.y | b.y, a.z | b.z, a.w | b.w}; }
// Bits 0 to 3 of `bits`, each as the lowest bit of a byte of its own.
__device__ inline int four_bits(unsigned bits) { return (int)((bits & 15) * 0x00204081u & 0x01010101u); }
__device__ inline int4 sixteen_bits(unsigned bits) {
    return {four_bits(bits), four_bits(bits >> 4), four_bits(bits >> 8), four_bits(bits >> 12)};
}
__device__ inline int4 shifted_up(int4 v, int by) { return {v.x << by, v.y << by, v.z << by, v.w << by}; }
