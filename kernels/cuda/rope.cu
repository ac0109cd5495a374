// RoPE fused with the KV store: each pair of a head turned by position * frequency, and a token's key
// and value put into the cache.
#include "common.h"

__device__ inline void put(float* to, float v) { *to = v; }
__device__ inline void put(__half* to, float v) { *to = __float2half(v); }

// One piece of a head of n numbers, `half` of which have a partner: a pair that is turned, or one of the
// numbers after the pairs, as it is. x and y may be the same.
template <class T>
__device__ inline void turn(const float* x, T* y, const float2* cos_sin, int i, int half, int interleaved) {
    if (i >= half) return put(y + half + i, x[half + i]);
    int first = interleaved ? 2 * i : i, second = interleaved ? first + 1 : first + half;
    float a = x[first], b = x[second];
    put(y + first, fmaf(a, cos_sin[i].x, -(b * cos_sin[i].y)));
    put(y + second, fmaf(a, cos_sin[i].y, b * cos_sin[i].x));
}

// q[n_tokens][n_head][head_dim] -> q_out likewise, which may be q; k and v[n_tokens][n_head_kv][head_dim]
// -> keys and values[n_head_kv][n_ctx][head_dim]. The first 2 * half numbers of a head of q and k turn.
// cos_sin[position][half] holds cosine and sine of each pair's angle; positions[n_tokens].
// One thread a piece of q, k or v.
template <class T>
__device__ inline void rope_kv_store(const float* q, const float* k, const float* v, const float2* cos_sin,
                                     const int* positions, float* q_out, T* keys, T* values,
                                     int n_tokens, int n_head, int n_head_kv, int head_dim, int half,
                                     int interleaved, int n_ctx) {
    int pieces = head_dim - half;                 // of a head of q or k
    int of_token = (n_head + n_head_kv) * pieces + n_head_kv * head_dim;
    int i = thread_of_row() % of_token, head = i / pieces;
    size_t token = thread_of_row() / of_token;
    if ((int)token >= n_tokens) return;
    size_t position = (size_t)positions[token];
    cos_sin += position * half;
    if (head < n_head) {
        size_t at = (token * n_head + head) * head_dim;
        turn(q + at, q_out + at, cos_sin, i % pieces, half, interleaved);
    } else if (head < n_head + n_head_kv) {
        head -= n_head;
        size_t at = (token * n_head_kv + head) * head_dim, to = (head * (size_t)n_ctx + position) * head_dim;
        turn(k + at, keys + to, cos_sin, i % pieces, half, interleaved);
    } else {
        i -= (n_head + n_head_kv) * pieces;
        size_t to = (i / head_dim * (size_t)n_ctx + position) * head_dim;
        put(values + to + i % head_dim, v[token * n_head_kv * head_dim + i]);
    }
}

KERNEL rope_kv_store_f16(const float* q, const float* __restrict__ k, const float* __restrict__ v,
                         const float2* __restrict__ cos_sin, const int* __restrict__ positions, float* q_out,
                         __half* __restrict__ keys, __half* __restrict__ values, int n_tokens, int n_head,
                         int n_head_kv, int head_dim, int half, int interleaved, int n_ctx) {
    rope_kv_store(q, k, v, cos_sin, positions, q_out, keys, values, n_tokens, n_head, n_head_kv,
                  head_dim, half, interleaved, n_ctx);
}
KERNEL rope_kv_store_f32(const float* q, const float* __restrict__ k, const float* __restrict__ v,
                         const float2* __restrict__ cos_sin, const int* __restrict__ positions, float* q_out,
                         float* __restrict__ keys, float* __restrict__ values, int n_tokens, int n_head,
                         int n_head_kv, int head_dim, int half, int interleaved, int n_ctx) {
    rope_kv_store(q, k, v, cos_sin, positions, q_out, keys, values, n_tokens, n_head, n_head_kv,
                  head_dim, half, interleaved, n_ctx);
}
