// RoPE: each pair of a head turned by position * frequency.
#include "common.h"

// x[n_tokens][n_head][head_dim] in place; the first 2 * half numbers of a head turn. turns[position][half]
// holds cosine and sine of each pair's angle; positions[n_tokens]. One thread a pair.
KERNEL rope(float* __restrict__ x, const float2* __restrict__ turns, const int* __restrict__ positions,
            int n_pairs, int n_head, int head_dim, int half, int interleaved) {
    int i = thread_of_row();
    if (i >= n_pairs) return;
    int pair = i % half, head = i / half, token = head / n_head;
    float2 turn = turns[(size_t)positions[token] * half + pair];
    float* first = x + (size_t)head * head_dim + (interleaved ? 2 * pair : pair);
    float* second = first + (interleaved ? 1 : half);
    float a = *first, b = *second;
    *first = fmaf(a, turn.x, -(b * turn.y));
    *second = fmaf(a, turn.y, b * turn.x);
}
