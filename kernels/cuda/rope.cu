// RoPE fused with the KV store: each pair of a head turned by position * frequency, and a token's key
// and value put into the cache.
#include "quantise.h"
#include "rope.h"
#include "slots.h"

// One piece of a head of n numbers, `half` of which have a partner: a pair that is turned, or one of the
// numbers after the pairs, as it is. x and y may be the same.
template <class T>
__device__ inline void rotate(const float* x, T* y, const float2* cos_sin, int i, int half, int interleaved) {
    if (i >= half) return put(y + half + i, x[half + i]);
    int first = interleaved ? 2 * i : i, second = interleaved ? first + 1 : first + half;
    Turned pair = turn(x[first], x[second], cos_sin[i]);
    put(y + first, pair.first), put(y + second, pair.second);
}

// q[n_tokens][n_head][head_dim] -> q_out likewise, which may be q; k and v[n_tokens][n_head_kv][head_dim]
// -> keys and values[n_slots][n_head_kv][n_rows][head_dim]. The first 2 * half numbers of a head of q and k rotate.
// cos_sin[position][half] holds cosine and sine of each pair's angle; positions[n_tokens], then slots (slots.h).
// Position p lies in row p % n_rows of the cache.
// One thread a piece of q, k or v.
template <class T>
__device__ inline void rope_kv_store(const float* q, const float* k, const float* v, const float2* cos_sin,
                                     const int* positions, float* q_out, T* keys, T* values,
                                     int n_tokens, int n_head, int n_head_kv, int head_dim, int half,
                                     int interleaved, int n_rows, int n_slots) {
    int pieces = head_dim - half;                 // of a head of q or k
    int of_token = (n_head + n_head_kv) * pieces + n_head_kv * head_dim;
    int i = thread_of_row() % of_token, head = i / pieces;
    size_t token = thread_of_row() / of_token;
    if ((int)token >= n_tokens) return;
    int position = positions[token], place = position % n_rows;
    int first_head = slot_of(positions, n_tokens, (int)token, n_slots) * n_head_kv;
    cos_sin += (size_t)position * half;
    if (head < n_head) {
        size_t at = (token * n_head + head) * head_dim;
        rotate(q + at, q_out + at, cos_sin, i % pieces, half, interleaved);
    } else if (head < n_head + n_head_kv) {
        head -= n_head;
        size_t at = (token * n_head_kv + head) * head_dim;
        size_t to = ((first_head + head) * (size_t)n_rows + place) * head_dim;
        rotate(k + at, keys + to, cos_sin, i % pieces, half, interleaved);
    } else {
        i -= (n_head + n_head_kv) * pieces;
        size_t to = ((first_head + i / head_dim) * (size_t)n_rows + place) * head_dim;
        put(values + to + i % head_dim, v[token * n_head_kv * head_dim + i]);
    }
}

// Number i of a head after its pairs are turned.
__device__ inline float turned(const float* x, const float2* cos_sin, int i, int half, int interleaved) {
    if (i >= 2 * half) return x[i];
    int pair = interleaved ? i / 2 : i % half;
    int first = interleaved ? 2 * pair : pair, second = interleaved ? first + 1 : first + half;
    Turned both = turn(x[first], x[second], cos_sin[pair]);
    return i == first ? both.first : both.second;
}

// One warp rounds 32 numbers of a head to a block of Q8_0.
__device__ inline void put_block(signed char* to, __half* scale, float v) {
    float d = warp_max_abs(v) / 127.f, inverse = d == 0.f ? 0.f : 1.f / d;
    to[lane()] = (signed char)__float2int_rn(v * inverse);
    if (lane() == 0) *scale = __float2half(d);
}

// The same into a cache of Q8_0: the bytes of all heads' rows, then the scales of their blocks. head_dim is a
// multiple of 32. One thread a piece of q, in whole warps a token, then one a number of k, and of v.
KERNEL rope_kv_store_q8_0(const float* q, const float* __restrict__ k, const float* __restrict__ v,
                          const float2* __restrict__ cos_sin, const int* __restrict__ positions, float* q_out,
                          signed char* __restrict__ keys, signed char* __restrict__ values, int n_tokens,
                          int n_head, int n_head_kv, int head_dim, int half, int interleaved, int n_rows, int n_slots) {
    int pieces = head_dim - half, of_q = (n_head * pieces + WARP - 1) / WARP * WARP, of_k = n_head_kv * head_dim;
    int of_token = of_q + 2 * of_k, i = thread_of_row() % of_token;
    size_t token = thread_of_row() / of_token;
    if ((int)token >= n_tokens) return;           // whole warps, and no barrier follows
    int position = positions[token], place = position % n_rows;
    int first_head = slot_of(positions, n_tokens, (int)token, n_slots) * n_head_kv;
    cos_sin += (size_t)position * half;
    if (i < of_q) {
        size_t at = (token * n_head + i / pieces) * head_dim;
        if (i / pieces < n_head) rotate(q + at, q_out + at, cos_sin, i % pieces, half, interleaved);
        return;
    }
    bool is_key = i - of_q < of_k;
    i = is_key ? i - of_q : i - of_q - of_k;
    int head = i / head_dim, number = i % head_dim;
    const float* x = (is_key ? k : v) + (token * n_head_kv + head) * head_dim;
    signed char* to = is_key ? keys : values;
    __half* scales = (__half*)(to + (size_t)n_slots * n_head_kv * n_rows * head_dim);
    size_t row = (size_t)(first_head + head) * n_rows + place, block = (size_t)(number / BLOCK);
    put_block(to + row * head_dim + block * BLOCK, scales + row * (head_dim / BLOCK) + block,
              is_key ? turned(x, cos_sin, number, half, interleaved) : x[number]);
}
KERNEL rope_kv_store_f16(const float* q, const float* __restrict__ k, const float* __restrict__ v,
                         const float2* __restrict__ cos_sin, const int* __restrict__ positions, float* q_out,
                         __half* __restrict__ keys, __half* __restrict__ values, int n_tokens, int n_head,
                         int n_head_kv, int head_dim, int half, int interleaved, int n_rows, int n_slots) {
    rope_kv_store(q, k, v, cos_sin, positions, q_out, keys, values, n_tokens, n_head, n_head_kv,
                  head_dim, half, interleaved, n_rows, n_slots);
}
KERNEL rope_kv_store_f32(const float* q, const float* __restrict__ k, const float* __restrict__ v,
                         const float2* __restrict__ cos_sin, const int* __restrict__ positions, float* q_out,
                         float* __restrict__ keys, float* __restrict__ values, int n_tokens, int n_head,
                         int n_head_kv, int head_dim, int half, int interleaved, int n_rows, int n_slots) {
    rope_kv_store(q, k, v, cos_sin, positions, q_out, keys, values, n_tokens, n_head, n_head_kv,
                  head_dim, half, interleaved, n_rows, n_slots);
}
