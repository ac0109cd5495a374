// y = W x: one warp a row, or half or a quarter of one where rows are short (lanes.h); the rows lie in planes as
// planes.py has them.
//
// A warp waits for nothing but its row. How many of its 16-byte loads are under way at once is the compiler's choice;
// bench/instructions.py counts them.
#include "epilogue.h"
#include "parameters.h"

enum { WHERE_POSITIVE = 16 };                     // of flags, beside those of epilogue.h

// y = residual + act(W x + bias). With WHERE_POSITIVE `bias` is no bias: rows where it is not positive are -infinity,
// and not read. grid: (rows / rows of a block, tokens).
template <class Rows, class Input>
__device__ inline void matvec(Rows rows, Input x, Epilogue out) {
    Lanes lanes = rows.lanes();
    int row = lanes.row_of(thread_of_row()), token = (int)blockIdx.y;
    if (lanes.first_row(thread_of_row()) >= out.n_rows) return;  // a whole warp leaves, and no barrier follows
    bool is_read = row < out.n_rows;
    if (is_read && out.flags & WHERE_POSITIVE && !(out.bias[row] > 0.f)) {
        if (lanes.is_first()) out.y[(size_t)token * out.n_rows + row] = __int_as_float((int)0xff800000);
        is_read = false;
    }
    float s = dot_where(is_read, rows, row, x.of_token(token, rows.n), lanes);
    if (is_read && lanes.is_first()) out.store(token, row, s);
}

#define MATVEC(T) \
KERNEL_WIDE matvec_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                  float* y, int n_rows, int n, int flags) { \
    matvec(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}); \
}
ONE_TYPE(MATVEC)

// Whether each row of a word is active.
__device__ static inline int* active_rows() {
    __shared__ int is_active[32];
    return is_active;
}

// Which rows of W x are not below the threshold (so NaN is not), row i in bit i % 32 of word i / 32.
// mask[n_tokens][words of a token]; bits after the last row, which is multiplied again for them, are 0. One block of
// eight warps a word. Tokens are the fast side of the grid, so that all of them read a word's rows while the cache has
// them. Short rows have a loop of their own, so that the long ones' is as it is in matvec.
// grid: (tokens, words of a token).
template <class Rows, class Input>
__device__ inline void matvec_mask(Rows rows, Input x, unsigned* mask, int n_rows, float threshold) {
    Lanes lanes = rows.lanes();
    int token = (int)blockIdx.x, *is_active = active_rows();
    x = x.of_token(token, rows.n);
    auto find = [&](int at, Lanes lanes) {
        int row = (int)blockIdx.y * 32 + at;
        bool is_here = row < n_rows;
        float s = dot_where(true, rows, min(row, n_rows - 1), x, lanes);
        if (lanes.is_first()) is_active[at] = is_here && !(s < threshold);
    };
    if (lanes.are_a_warp())
        UNROLL(1)
        for (int k = 0; k < 4; k++) find(4 * warp() + k, WHOLE_WARP);
    else
        UNROLL(1)
        for (int k = 0; k < 4; k += lanes.rows_a_warp()) find(4 * warp() + k + lanes.row_of(lane()), lanes);
    __syncthreads();                              // it is known of all rows
    unsigned word = __ballot_sync(ALL_LANES, is_active[lane()]);
    if (threadIdx.x == 0) mask[(size_t)token * gridDim.y + blockIdx.y] = word;
}

#define MATVEC_MASK(T) \
KERNEL_WIDE matvec_mask_##T(PLANES_##T(w), INPUT_##T, unsigned* __restrict__ mask, int n_rows, int n, \
                       float threshold) { \
    matvec_mask(ROWS_##T(w, n), X_##T, mask, n_rows, threshold); \
}
ONE_TYPE(MATVEC_MASK)
