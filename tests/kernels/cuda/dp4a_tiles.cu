// matmul as cards without tensor cores have it.
#include "matmul.h"

#define DP4A_TILES(T) \
KERNEL_WIDE dp4a_tiles_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                           float* y, int n_rows, int n, int flags, int n_tokens) { \
    matmul(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}, n_tokens, Apart{}); \
}
ONE_TYPE(DP4A_TILES)
