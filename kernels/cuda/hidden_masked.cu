// Hidden values of an FFN for many tokens, from the products of all its rows: the numbers that
// sparse_gated_ffn and sparse_ffn work out row by row, with zero where the mask does not list the neuron.
#include "activations.h"
#include "mask.h"

// The token's neurons that count: those that the mask lists, or all. neurons[row] is a row's neuron.
struct Listed {
    const unsigned* mask;
    const int* neurons;
    int n_words, has_mask;
    __device__ bool has(int row) const {
        return !has_mask || is_listed(mask + (size_t)blockIdx.y * n_words, neurons[row]);
    }
};

// With has_least, rows below their thresholds are zero too.
// gate, up[n_tokens][n_rows], mask[n_tokens][n_words] -> h[n_tokens][n_rows], which may be gate or up.
// grid: (rows / 256, tokens).
KERNEL hidden_masked_gated(const float* gate, const float* up, const unsigned* __restrict__ mask,
                     const int* __restrict__ neurons, float* h, int n_rows, int n_words, int has_mask,
                     int activation, const float* __restrict__ least, const int* __restrict__ positions,
                     int has_least) {
    int row = thread_of_row();
    if (row >= n_rows) return;
    size_t at = (size_t)blockIdx.y * n_rows + row;
    bool listed = Listed{mask, neurons, n_words, has_mask}.has(row);
    float g = listed ? gate[at] : 0.f;
    bool counts = listed && !is_closed(g, activation) &&
                  !Least{least, positions, has_least}.leaves_out(g, row, (int)blockIdx.y, activation);
    h[at] = counts ? gated(g, up[at], activation) : 0.f;
}

// Hidden values of pairs, a token and one of its experts each, from the products of all rows: h[pair][row] is zero
// below the threshold least[slots[expert]][row], and where the expert is not here. chosen[n_tokens][2 n_used] is as
// top_k leaves it. h may be gate or up. grid: (rows / 256, pairs).
KERNEL hidden_of_experts(const float* gate, const float* up, const int* __restrict__ slots,
                         const int* __restrict__ chosen, const float* __restrict__ least,
                         const int* __restrict__ positions, float* h, int n_rows, int n_used, int activation) {
    int row = thread_of_row(), pair = (int)blockIdx.y, token = pair / n_used;
    if (row >= n_rows) return;
    size_t at = (size_t)pair * n_rows + row;
    int slot = slots[chosen[(size_t)token * 2 * n_used + pair % n_used]];
    float g = slot >= 0 ? gate[at] : 0.f;
    bool counts = slot >= 0 &&
                  !Least{least + (size_t)slot * n_rows, positions, 1}.leaves_out(g, row, token, activation);
    h[at] = counts ? gated(g, up[at], activation) : 0.f;
}

// The same without a gate; bias[neuron], if there is one. h may be up.
KERNEL hidden_masked(const float* up, const float* __restrict__ bias, const unsigned* __restrict__ mask,
                         const int* __restrict__ neurons, float* h, int n_rows, int n_words, int has_mask,
                         int has_bias, int activation) {
    int row = thread_of_row();
    if (row >= n_rows) return;
    size_t at = (size_t)blockIdx.y * n_rows + row;
    if (Listed{mask, neurons, n_words, has_mask}.has(row))
        h[at] = activated(up[at] + (has_bias ? bias[neurons[row]] : 0.f), activation);
    else h[at] = 0.f;
}
