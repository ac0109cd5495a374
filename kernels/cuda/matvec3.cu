// Three matrices with one input, for q, k and v: one warp a row or less, as in matvec.cu; each matrix begins with a
// warp. What comes of it goes to three vectors, or q and k are turned, as rope.cu does it, and k and v go into the KV
// cache.
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

    // Number i of a matrix's products is that of this row, so that the numbers of a pair are those of neighbours.
    __device__ int row(int i) const {
        int at = i % head_dim, in_pair = at % 2;
        return at >= 2 * half || interleaved ? i : i - at + at / 2 + in_pair * half;
    }
    // A pair's number in the second one's place, or the first one's, from both; i as above.
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

// Of the sums of both rows of a pair, the neighbour's. Once a kernel.
__device__ static inline float sum_of_neighbour(float v, Lanes lanes) {
    __shared__ float sums[32];
    int at = lanes.row_of((int)threadIdx.x);
    if (lanes.is_first()) sums[at] = v;
    __syncthreads();
    return sums[at ^ 1];
}

// A product's place: which of the three matrices, and which of its products.
struct Third { int matrix, i; };
// Of the i-th product, where warps have so many, a power of two, and none has rows of two matrices: places behind a
// matrix's last row are nobody's.
__device__ inline Third third(int i, int rows_a, int rows_b, int a_warp) {
    int end_a = (rows_a + a_warp - 1) & -a_warp, end_b = (rows_b + a_warp - 1) & -a_warp;
    if (i < end_a) return {0, i};
    i -= end_a;
    if (i < end_b) return {1, i};
    return {2, i - end_b};
}

// The rows of a, then those of b, then those of c. grid: (all rows / rows of a block, tokens).
// dot(is_read, which, row), and its lanes.
template <class Dot>
__device__ inline void matvec3(Dot dot, Epilogue out_a, Epilogue out_b, Epilogue out_c, Rooms rooms) {
    int token = (int)blockIdx.y;
    Lanes lanes = dot.lanes;
    Third at = third(lanes.row_of(thread_of_row()), out_a.n_rows, out_b.n_rows, lanes.rows_a_warp());
    Epilogue out = at.matrix == 0 ? out_a : at.matrix == 1 ? out_b : out_c;
    bool has_cache = rooms.cache != Rooms::NONE;
    int row = has_cache && at.matrix < 2 ? rooms.row(at.i) : at.i;
    bool is_here = at.i < out.n_rows;
    float v = dot(is_here, at.matrix, row);
    if (is_here) v = out.finished(token, row, v);
    float of_neighbour = has_cache ? sum_of_neighbour(v, lanes) : 0.f;
    if (!is_here || !lanes.is_first()) return;
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
    Lanes lanes;
    __device__ float operator()(bool is_read, int matrix, int row) const {
        return matrix == 0 ? dot_where(is_read, a, row, x, lanes) :
               matrix == 1 ? dot_where(is_read, b, row, x, lanes) : dot_where(is_read, c, row, x, lanes);
    }
};
// Of one type: one loop for all three.
template <class Rows, class Input> struct DotOfThree<Rows, Rows, Rows, Input> {
    Rows a, b, c;
    Input x;
    Lanes lanes;
    __device__ float operator()(bool is_read, int matrix, int row) const {
        Rows one = a;                             // a choice among lvalues would lie on the stack
        if (matrix > 0) one = b;
        if (matrix > 1) one = c;
        return dot_where(is_read, one, row, x, lanes);
    }
};
template <class A, class B, class C, class Input>
__device__ inline DotOfThree<A, B, C, Input> dot_of_three(A a, B b, C c, Input x) {
    return {a, b, c, x.of_token((int)blockIdx.y, a.n), a.lanes().or_more(b.lanes()).or_more(c.lanes())};
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
