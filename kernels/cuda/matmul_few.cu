// Y = X W^T for few tokens or few rows, of quantised types: tiles of 16 rows by 16 tokens, cut along the rows over the
// warps of a block, with the bits of matmul.cu.
#include "matmul_few.h"

#define MATMUL_FEW(T) \
KERNEL_WIDE matmul_few_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                           float* y, int n_rows, int n, int flags, int n_tokens) { \
    matmul_few<FewProducts>(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}, n_tokens); \
}
ONE_QUANTISED_TYPE(MATMUL_FEW)
