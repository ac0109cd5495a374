// Y = X W^T for few tokens or few rows: tiles of 16 rows by 16 tokens, cut along the rows over the warps of a block,
// with the bits of matmul.cu.
#include "matmul_few_floats.h"

// grid: (rows / 16, tokens / 16).
template <class Rows, class Input>
__device__ inline void matmul_few(Rows rows, Input x, Epilogue out, int n_tokens) {
    int first_row = (int)blockIdx.x * FEW_SIDE, first_token = (int)blockIdx.y * FEW_SIDE;
    multiply_few<FewProducts>(rows, first_row, min(first_row + FEW_SIDE, out.n_rows), x,
                              Following{first_token, min(n_tokens - first_token, FEW_SIDE)},
                              [&](int row, int t, float v) { out.store(first_token + t, row, v); });
}

#define MATMUL_FEW(T) \
KERNEL_WIDE matmul_few_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                           float* y, int n_rows, int n, int flags, int n_tokens) { \
    matmul_few(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}, n_tokens); \
}
ONE_TYPE(MATMUL_FEW)
