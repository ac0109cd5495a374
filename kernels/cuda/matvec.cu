// y = W x: one warp a row, the rows in planes as repack.py lays them out.
#include "weights.h"

// grid: (rows / warps of a block, tokens).
template <class Rows, class Input>
__device__ inline void matvec(Rows rows, Input x, float* y, int n_rows) {
    int row = thread_of_row() / WARP, token = (int)blockIdx.y;
    if (row >= n_rows) return;                    // a whole warp leaves, and no barrier follows
    float s = rows.dot(row, x.of_token(token, rows.n));
    if (lane() == 0) y[(size_t)token * n_rows + row] = s;
}

KERNEL matvec_f32(const float* __restrict__ w, const float* __restrict__ x, float* __restrict__ y,
                  int n_rows, int n) {
    matvec(Plain<float>(w, n), Floats{x}, y, n_rows);
}
KERNEL matvec_f16(const __half* __restrict__ w, const float* __restrict__ x, float* __restrict__ y,
                  int n_rows, int n) {
    matvec(Plain<__half>(w, n), Floats{x}, y, n_rows);
}
KERNEL matvec_bf16(const unsigned short* __restrict__ w, const float* __restrict__ x, float* __restrict__ y,
                   int n_rows, int n) {
    matvec(Plain<unsigned short>(w, n), Floats{x}, y, n_rows);
}
KERNEL matvec_q8_0(const __half* __restrict__ scales, const int4* __restrict__ quants,
                   const int4* __restrict__ q, const float* __restrict__ d, const int* __restrict__ sum,
                   float* __restrict__ y, int n_rows, int n) {
    matvec(Q8_0(scales, quants, n), Quantised{q, d, sum}, y, n_rows);
}
KERNEL matvec_q4_0(const __half* __restrict__ scales, const uint4* __restrict__ quants,
                   const int4* __restrict__ q, const float* __restrict__ d, const int* __restrict__ sum,
                   float* __restrict__ y, int n_rows, int n) {
    matvec(Q4_0(scales, quants, n), Quantised{q, d, sum}, y, n_rows);
}
