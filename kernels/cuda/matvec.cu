// y = W x: one warp a row, the rows in planes as planes.py lays them out.
//
// A warp waits for nothing but its row. How many of its 16-byte loads are under way at once is the compiler's choice;
// bench/instructions.py counts them.
#include "epilogue.h"
#include "parameters.h"

enum { WHERE_POSITIVE = 16 };                     // of flags, beside those of epilogue.h

// y = residual + act(W x + bias). With WHERE_POSITIVE `bias` is no bias: rows where it is not positive are -infinity,
// and not read. grid: (rows / warps of a block, tokens).
template <class Rows, class Input>
__device__ inline void matvec(Rows rows, Input x, Epilogue out) {
    int row = thread_of_row() / WARP, token = (int)blockIdx.y;
    if (row >= out.n_rows) return;                // a whole warp leaves, and no barrier follows
    if (out.flags & WHERE_POSITIVE && !(out.bias[row] > 0.f)) {
        if (lane() == 0) out.y[(size_t)token * out.n_rows + row] = __int_as_float((int)0xff800000);
        return;
    }
    float s = rows.dot(row, x.of_token(token, rows.n));
    if (lane() == 0) out.store(token, row, s);
}

#define MATVEC(T) \
KERNEL_WIDE matvec_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                  float* y, int n_rows, int n, int flags) { \
    matvec(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}); \
}
ONE_TYPE(MATVEC)

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
// mask[n_tokens][words of a token]; bits after the last row are 0. One block of eight warps a word. Tokens are the
// fast side of the grid, so that all of them read a word's rows while the cache has them.
// grid: (tokens, words of a token).
template <class Rows, class Input>
__device__ inline void matvec_mask(Rows rows, Input x, unsigned* mask, int n_rows, float threshold) {
    int first = (int)blockIdx.y * 32 + 4 * warp(), token = (int)blockIdx.x;
    x = x.of_token(token, rows.n);
    unsigned bits = 0;
    UNROLL(1)
    for (int k = 0; k < 4 && first + k < n_rows; k++)
        if (!(rows.dot(first + k, x) < threshold)) bits |= 1u << k;
    bits = block_bits(bits);
    if (threadIdx.x == 0) mask[(size_t)token * gridDim.y + blockIdx.y] = bits;
}

#define MATVEC_MASK(T) \
KERNEL_WIDE matvec_mask_##T(PLANES_##T(w), INPUT_##T, unsigned* __restrict__ mask, int n_rows, int n, \
                       float threshold) { \
    matvec_mask(ROWS_##T(w, n), X_##T, mask, n_rows, threshold); \
}
ONE_TYPE(MATVEC_MASK)
