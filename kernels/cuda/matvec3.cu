// Three matrices with one input, for q, k and v: one warp a row, as in matvec.cu. What comes of it goes to three
// vectors, or q and k are turned, as rope.cu does it, and k and v go into the KV cache.
#include "epilogue.h"
#include "parameters.h"
#include "rope.h"
#include "slots.h"

// Where the rows go. Without a cache each goes to its y, else q alone does, and `cos_sin` to `n_slots` are as in
// rope.cu.
struct Rooms {
    const float2* cos_sin;
    const int* positions;
    unsigned char *keys, *values;                 // of numbers of the cache's type
    int head_dim, half, interleaved, n_rows, n_slots;
    int cache;                                    // a type, or none
    enum { NONE = 0, F16 = 1, F32 = 2 };

    // Number i of a matrix's warps has this row, so that the numbers of a pair are those of neighbours.
    __device__ int row(int i) const {
        int at = i % head_dim, in_pair = at % 2;
        return at >= 2 * half || interleaved ? i : i - at + at / 2 + in_pair * half;
    }
    // A pair's number in the second warp's place, or first one's, from both; i as above.
    __device__ float turned(float own, float of_neighbour, int i, int position) const {
        int at = i % head_dim;
        if (at >= 2 * half) return own;
        float2 angle = cos_sin[(size_t)position * half + at / 2];
        return at % 2 ? turn(of_neighbour, own, angle).second : turn(own, of_neighbour, angle).first;
    }
    // Row of n of a token's slot.
    __device__ void keep(unsigned char* all, int row, int n, int token, float v) const {
        int position = positions[token];
        row += slot_of(positions, (int)gridDim.y, token, n_slots) * n;
        size_t at = ((size_t)(row / head_dim) * n_rows + position % n_rows) * head_dim + row % head_dim;
        if (cache == F16) put((__half*)all + at, v);
        else put((float*)all + at, v);
    }
};

// The sums of both warps of a pair, each in its own place and in the other's: the neighbour's. Once a kernel.
__device__ static inline float sum_of_neighbour(float v) {
    __shared__ float sums[8];
    if (lane() == 0) sums[warp()] = v;
    __syncthreads();
    return sums[warp() ^ 1];
}

// A product's place: which of the three matrices, and which of its warps.
struct Third { int matrix, i; };
__device__ inline Third third(int i, int rows_a, int rows_b, int rows_c) {
    if (i < rows_a) return {0, i};
    i -= rows_a;
    if (i < rows_b) return {1, i};
    i -= rows_b;
    return {i < rows_c ? 2 : 3, i};               // 3: nothing is left
}

// The rows of a, then those of b, then those of c. grid: (all rows / warps of a block, tokens). dot(which, row).
template <class Dot>
__device__ inline void matvec3(Dot dot, Epilogue out_a, Epilogue out_b, Epilogue out_c, Rooms rooms) {
    int token = (int)blockIdx.y;
    Third at = third(thread_of_row() / WARP, out_a.n_rows, out_b.n_rows, out_c.n_rows);
    Epilogue out = at.matrix == 0 ? out_a : at.matrix == 1 ? out_b : out_c;
    bool has_cache = rooms.cache != Rooms::NONE;
    int row = has_cache && at.matrix < 2 ? rooms.row(at.i) : at.i;
    float v = at.matrix > 2 ? 0.f : out.finished(token, row, dot(at.matrix, row));
    float of_neighbour = has_cache ? sum_of_neighbour(v) : 0.f;
    if (lane() > 0 || at.matrix > 2) return;
    if (has_cache) {
        if (at.matrix < 2) v = rooms.turned(v, of_neighbour, at.i, rooms.positions[token]);
        if (at.matrix > 0) return rooms.keep(at.matrix == 1 ? rooms.keys : rooms.values, row, out.n_rows, token, v);
    }
    out.y[(size_t)token * out.n_rows + row] = v;
}
template <class A, class B, class C, class Input> struct DotOfThree {
    A a;
    B b;
    C c;
    Input x;
    __device__ float operator()(int matrix, int row) const {
        return matrix == 0 ? a.dot(row, x) : matrix == 1 ? b.dot(row, x) : c.dot(row, x);
    }
};
// Of one type: one loop for all three.
template <class Rows, class Input> struct DotOfThree<Rows, Rows, Rows, Input> {
    Rows a, b, c;
    Input x;
    __device__ float operator()(int matrix, int row) const {
        Rows one = a;                             // a choice among lvalues would lie on the stack
        if (matrix > 0) one = b;
        if (matrix > 1) one = c;
        return one.dot(row, x);
    }
};
template <class A, class B, class C, class Input>
__device__ inline DotOfThree<A, B, C, Input> dot_of_three(A a, B b, C c, Input x) {
    return {a, b, c, x.of_token((int)blockIdx.y, a.n)};
}

#define MATVEC3(ENDING, A, B, C) \
KERNEL_WIDE matvec3_##ENDING(PLANES_##A(a), PLANES_##B(b), PLANES_##C(c), INPUT_##A, \
                   const float* __restrict__ bias_a, const float* __restrict__ bias_b, \
                   const float* __restrict__ bias_c, float* __restrict__ y_a, float* __restrict__ y_b, \
                   float* __restrict__ y_c, int rows_a, int rows_b, int rows_c, int n, int flags, \
                   const float2* __restrict__ cos_sin, const int* __restrict__ positions, \
                   unsigned char* __restrict__ keys, unsigned char* __restrict__ values, int head_dim, int half, \
                   int interleaved, int n_rows, int n_slots, int cache) { \
    matvec3(dot_of_three(ROWS_##A(a, n), ROWS_##B(b, n), ROWS_##C(c, n), X_##A), \
            Epilogue{bias_a, y_a, y_a, rows_a, flags}, Epilogue{bias_b, y_b, y_b, rows_b, flags}, \
            Epilogue{bias_c, y_c, y_c, rows_c, flags}, \
            Rooms{cos_sin, positions, keys, values, head_dim, half, interleaved, n_rows, n_slots, cache}); \
}
THREE_TYPES(MATVEC3)
