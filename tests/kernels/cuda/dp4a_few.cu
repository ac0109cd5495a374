// matmul_few as cards without tensor cores have it.
#include "matmul_few.h"

#define DP4A_FEW(T) \
KERNEL_WIDE dp4a_few_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                         float* y, int n_rows, int n, int flags, int n_tokens) { \
    matmul_few<FewByDp4a>(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}, n_tokens); \
}
ONE_QUANTISED_TYPE(DP4A_FEW)
