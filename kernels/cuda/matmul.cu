// Y = X W^T for a batch of tokens, in tiles of 64 rows by 64 tokens.
//
// A block of 256 threads walks along the rows in steps: it lays a piece of 64 rows and of 64 inputs into shared memory
// (matmul_tile.h, halves_tile.h) and multiplies them (matmul.h): int8 and halves by tensor cores where there are any;
// else int8 by dp4a, four rows by four tokens a thread, and floats so everywhere. A row's pieces are taken chain after
// chain, each chain is summed in one float and then added to those before it: the bits of a row alone (weights.h).
#include "matmul.h"

#define MATMUL(T) \
KERNEL_WIDE matmul_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                       float* y, int n_rows, int n, int flags, int n_tokens) { \
    matmul(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}, n_tokens, \
           places(ROWS_##T(w, n))); \
}
ONE_TYPE(MATMUL)
