// Which experts a token goes to, by a router's logits, and their weights. One warp a token.
#include "common.h"

enum { SOFTMAX_GATING = 0, SIGMOID_GATING = 1, SOFTMAX_CHOSEN_GATING = 2 };
constexpr float SMALLEST_SUM = 1.f / 16384.f;      // that weights are divided by

__device__ inline float sigmoid(float v) { return 1.f / (1.f + expf(-v)); }

// Put a number among n ascending ones; below 0 the smallest that is missing there, where only NaN is left.
__device__ static inline void insert_expert(int* ids, int n, int expert) {
    if (expert < 0)
        for (expert = 0; expert < n && ids[expert] == expert;) expert++;
    int i = n;
    for (; i > 0 && ids[i - 1] > expert; i--) ids[i] = ids[i - 1];
    ids[i] = expert;
}

// logits[n_tokens][n_expert] -> chosen[n_tokens][2 n_used]: n_used numbers, ascending, then their weights as
// floats. Of equal logits the first counts. grid: tokens, of a warp each.
KERNEL top_k(const float* __restrict__ logits, int* chosen, int n_expert, int n_used, int gating, int normed,
             float scale) {
    logits += (size_t)blockIdx.x * n_expert;
    int* ids = chosen + (size_t)blockIdx.x * 2 * n_used;
    float* weights = (float*)(ids + n_used);
    const float infinite = __int_as_float(0x7f800000);
    float value = infinite, largest = 0.f;
    int at = -1;
    for (int i = 0; i < n_used; i++) {
        float best = -infinite;
        int expert = -1;
        for (int e = lane(); e < n_expert; e += WARP) {
            float v = logits[e];
            bool behind = v < value || (v == value && e > at);
            if (behind && (expert < 0 || v > best)) best = v, expert = e;
        }
        for (int d = WARP / 2; d; d /= 2) {
            float v = __shfl_xor_sync(ALL_LANES, best, d);
            int e = __shfl_xor_sync(ALL_LANES, expert, d);
            if (e >= 0 && (expert < 0 || v > best || (v == best && e < expert))) best = v, expert = e;
        }
        if (expert >= 0) value = best, at = expert;
        if (i == 0) largest = best;
        if (lane() == 0) insert_expert(ids, i, expert);
    }
    float total = 0.f;
    if (gating == SOFTMAX_GATING) {
        for (int e = lane(); e < n_expert; e += WARP) total += expf(logits[e] - largest);
        total = warp_sum(total);
    }
    if (lane() != 0) return;
    if (gating == SOFTMAX_CHOSEN_GATING)
        for (int i = 0; i < n_used; i++) total += expf(logits[ids[i]] - largest);
    float sum = 0.f;
    for (int i = 0; i < n_used; i++) {
        float v = logits[ids[i]];
        weights[i] = gating == SIGMOID_GATING ? sigmoid(v) : expf(v - largest) / total;
        sum += weights[i];
    }
    float factor = normed ? scale / (sum <= SMALLEST_SUM ? SMALLEST_SUM : sum) : scale;
    for (int i = 0; i < n_used; i++) weights[i] *= factor;
}
