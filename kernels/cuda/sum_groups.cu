// The second reduce of the sparse FFNs, and what follows it in the layer.
#include "addends.h"

// partial[n_tokens][n_groups][n] -> y[n_tokens][n], y = ((sum of the groups + bias) + other) + residual,
// each addend if `flags` says so. Warp w of a block sums groups w, w + warps, ... of 32 columns; the
// first warp adds the warps' sums in order. grid: (columns / 32, tokens).
KERNEL sum_groups(const float* __restrict__ partial, const float* __restrict__ bias,
                  const float* __restrict__ other, const float* __restrict__ residual,
                  float* __restrict__ y, int n_groups, int n, int flags) {
    __shared__ float of_warp[8][WARP];
    int column = (int)blockIdx.x * WARP + lane(), token = (int)blockIdx.y;
    partial += (size_t)token * n_groups * n;
    float s = 0.f;
    if (column < n)
        for (int g = warp(); g < n_groups; g += n_warps()) s += partial[(size_t)g * n + column];
    of_warp[warp()][lane()] = s;
    __syncthreads();
    if (warp() > 0 || column >= n) return;
    s = of_warp[0][lane()];
    for (int w = 1; w < n_warps(); w++) s += of_warp[w][lane()];
    size_t at = (size_t)token * n + column;
    y[at] = Addends{bias, other, residual, flags}.onto(s, at, column);
}
