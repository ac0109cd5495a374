// y = W x: one warp a row, the rows in planes as planes.py lays them out.
//
// A warp waits for nothing but its row. How many of its 16-byte loads are under way at once is the compiler's choice:
// for Q4_0 on sm_86 to sm_120 ptxas loads the second only after the first has been used.
#include "epilogue.h"
#include "parameters.h"

// y = residual + act(W x + bias). grid: (rows / warps of a block, tokens).
template <class Rows, class Input>
__device__ inline void matvec(Rows rows, Input x, Epilogue out) {
    int row = thread_of_row() / WARP, token = (int)blockIdx.y;
    if (row >= out.n_rows) return;                // a whole warp leaves, and no barrier follows
    float s = rows.dot(row, x.of_token(token, rows.n));
    if (lane() == 0) out.store(token, row, s);
}

#define MATVEC(T) \
KERNEL matvec_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                  float* y, int n_rows, int n, int flags) { \
    matvec(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}); \
}
MATVEC(f32) MATVEC(f16) MATVEC(bf16) MATVEC(q8_0) MATVEC(q4_0) MATVEC(q5_0) MATVEC(q6_K)

// Three matrices with one input, for q, k and v: the rows of a, then those of b, then those of c.
// grid: (all rows / warps of a block, tokens).
template <class Rows, class Input>
__device__ inline void matvec3(Rows a, Rows b, Rows c, Input x, Epilogue out_a, Epilogue out_b,
                               Epilogue out_c) {
    int row = thread_of_row() / WARP, token = (int)blockIdx.y;
    if (row >= out_a.n_rows) {
        row -= out_a.n_rows, a = b, out_a = out_b;
        if (row >= out_b.n_rows) row -= out_b.n_rows, a = c, out_a = out_c;
    }
    if (row >= out_a.n_rows) return;              // a whole warp leaves, and no barrier follows
    float s = a.dot(row, x.of_token(token, a.n));
    if (lane() == 0) out_a.store(token, row, s);
}

#define MATVEC3(T) \
KERNEL matvec3_##T(PLANES_##T(a), PLANES_##T(b), PLANES_##T(c), INPUT_##T, \
                   const float* __restrict__ bias_a, const float* __restrict__ bias_b, \
                   const float* __restrict__ bias_c, float* __restrict__ y_a, float* __restrict__ y_b, \
                   float* __restrict__ y_c, int rows_a, int rows_b, int rows_c, int n, int flags) { \
    matvec3(ROWS_##T(a, n), ROWS_##T(b, n), ROWS_##T(c, n), X_##T, \
            Epilogue{bias_a, y_a, y_a, rows_a, flags}, Epilogue{bias_b, y_b, y_b, rows_b, flags}, \
            Epilogue{bias_c, y_c, y_c, rows_c, flags}); \
}
MATVEC3(f32) MATVEC3(f16) MATVEC3(bf16) MATVEC3(q8_0) MATVEC3(q4_0)

// Four bits of each of eight warps, as a word in every thread; once a kernel.
__device__ static inline unsigned block_bits(unsigned bits) {
    __shared__ unsigned of_warp[8];
    if (lane() == 0) of_warp[warp()] = bits << 4 * warp();
    __syncthreads();
    unsigned word = 0;
    for (int w = 0; w < 8; w++) word |= of_warp[w];
    return word;
}

// Which rows of W x are not below the threshold (so NaN is not), row i in bit i % 32 of word i / 32.
// mask[n_tokens][words of a token]; bits after the last row are 0. One block of eight warps a word.
// grid: (words of a token, tokens).
template <class Rows, class Input>
__device__ inline void matvec_mask(Rows rows, Input x, unsigned* mask, int n_rows, float threshold) {
    int first = (int)blockIdx.x * 32 + 4 * warp(), token = (int)blockIdx.y;
    x = x.of_token(token, rows.n);
    unsigned bits = 0;
    for (int k = 0; k < 4 && first + k < n_rows; k++)
        if (!(rows.dot(first + k, x) < threshold)) bits |= 1u << k;
    bits = block_bits(bits);
    if (threadIdx.x == 0) mask[(size_t)token * gridDim.x + blockIdx.x] = bits;
}

#define MATVEC_MASK(T) \
KERNEL matvec_mask_##T(PLANES_##T(w), INPUT_##T, unsigned* __restrict__ mask, int n_rows, int n, \
                       float threshold) { \
    matvec_mask(ROWS_##T(w, n), X_##T, mask, n_rows, threshold); \
}
MATVEC_MASK(f32) MATVEC_MASK(f16) MATVEC_MASK(bf16) MATVEC_MASK(q8_0) MATVEC_MASK(q4_0)
MATVEC_MASK(q5_0) MATVEC_MASK(q6_K)
