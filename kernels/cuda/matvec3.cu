// Three matrices with one input, for q, k and v: one warp a row, as in matvec.cu.
#include "epilogue.h"
#include "parameters.h"

// The rows of a, then those of b, then those of c. grid: (all rows / warps of a block, tokens).
template <class A, class B, class C, class Input>
__device__ inline void matvec3(A a, B b, C c, Input x, Epilogue out_a, Epilogue out_b, Epilogue out_c) {
    int row = thread_of_row() / WARP, token = (int)blockIdx.y;
    int of_b = row - out_a.n_rows, of_c = of_b - out_b.n_rows;
    if (of_c >= out_c.n_rows) return;             // a whole warp leaves, and no barrier follows
    x = x.of_token(token, a.n);
    float s = of_b < 0 ? a.dot(row, x) : of_c < 0 ? b.dot(of_b, x) : c.dot(of_c, x);
    if (lane() > 0) return;
    if (of_b < 0) out_a.store(token, row, s);
    else if (of_c < 0) out_b.store(token, of_b, s);
    else out_c.store(token, of_c, s);
}
// Of one type: one loop for all three.
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

#define MATVEC3(ENDING, A, B, C) \
KERNEL_WIDE matvec3_##ENDING(PLANES_##A(a), PLANES_##B(b), PLANES_##C(c), INPUT_##A, \
                   const float* __restrict__ bias_a, const float* __restrict__ bias_b, \
                   const float* __restrict__ bias_c, float* __restrict__ y_a, float* __restrict__ y_b, \
                   float* __restrict__ y_c, int rows_a, int rows_b, int rows_c, int n, int flags) { \
    matvec3(ROWS_##A(a, n), ROWS_##B(b, n), ROWS_##C(c, n), X_##A, \
            Epilogue{bias_a, y_a, y_a, rows_a, flags}, Epilogue{bias_b, y_b, y_b, rows_b, flags}, \
            Epilogue{bias_c, y_c, y_c, rows_c, flags}); \
}
THREE_TYPES(MATVEC3)
