// What comes behind experts: their sum by weights, and the gate of a shared one. slots and chosen: as in
// expert_rows.cu.
#include "common.h"

// x[n_tokens * n_used][n] -> y[n_tokens][n], the sum by weights of the pairs whose expert is here, in their order.
// grid: (columns / 256, tokens).
KERNEL expert_sum(const float* __restrict__ x, const int* __restrict__ slots, const int* __restrict__ chosen,
                  float* __restrict__ y, int n, int n_used) {
    int column = thread_of_row(), token = (int)blockIdx.y;
    if (column >= n) return;
    chosen += (size_t)token * 2 * n_used;
    const float* weights = (const float*)(chosen + n_used);
    float s = 0.f;
    for (int i = 0; i < n_used; i++)
        if (slots[chosen[i]] >= 0) s = fmaf(weights[i], x[((size_t)token * n_used + i) * n + column], s);
    y[(size_t)token * n + column] = s;
}

// y = x sigmoid(gate), one gate a token. grid: (columns / 256, tokens).
KERNEL mul_sigmoid(const float* __restrict__ x, const float* __restrict__ gate, float* __restrict__ y, int n) {
    int column = thread_of_row();
    size_t at = (size_t)blockIdx.y * n + column;
    if (column < n) y[at] = x[at] / (1.f + expf(-gate[blockIdx.y]));
}
