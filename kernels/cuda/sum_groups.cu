// The second reduce of the sparse FFNs, and what follows it in the layer.
#include "addends.h"

constexpr int GROUPS_AT_ONCE = 128;               // in shared memory

// partial[n_tokens][n_groups][n] -> y[n_tokens][n], y = ((sum of the groups + bias) + other) + residual,
// each addend if `flags` says so. All warps fetch the groups of 32 columns, and the first adds them in their order,
// from 0 on, as a tile of matmul_transposed.cu does. grid: (columns / 32, tokens).
KERNEL sum_groups(const float* __restrict__ partial, const float* __restrict__ bias,
                  const float* __restrict__ other, const float* __restrict__ residual,
                  float* __restrict__ y, int n_groups, int n, int flags) {
    DYNAMIC_SHARED(float, of_groups);             // [min(n_groups, GROUPS_AT_ONCE)][WARP]
    int column = (int)blockIdx.x * WARP + lane(), token = (int)blockIdx.y;
    partial += (size_t)token * n_groups * n;
    size_t at = (size_t)token * n + column;
    Addends addends{bias, other, residual, flags};
    float s = 0.f, of_other = warp() == 0 && column < n ? addends.others(at) : 0.f;
    for (int first = 0; first < n_groups; first += GROUPS_AT_ONCE) {
        int n_some = column < n ? min(n_groups - first, GROUPS_AT_ONCE) : 0;
        for (int g = warp(); g < n_some; g += n_warps())
            of_groups[g * WARP + lane()] = partial[(size_t)(first + g) * n + column];
        __syncthreads();
        for (int g = 0; g < (warp() == 0 ? n_some : 0); g++) s += of_groups[g * WARP + lane()];
        __syncthreads();                          // they are about to be written again
    }
    if (warp() > 0 || column >= n) return;
    y[at] = addends.onto(s, of_other, at, column);
}
