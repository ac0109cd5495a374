// Causal grouped-query attention over the KV cache: y = softmax(scale q . keys) . values, of all positions
// up to a token's own or of the last `window` of them; position p lies in row p % n_rows of the cache. A sink
// is one more score of a head, which takes a share and has no value.
//
// A block takes some queries of one key/value head, so that what it loads serves all of them: the queries are those of
// the head's group for one token, then for the next. It takes the positions in parts, which begin at multiples of 256,
// and turns a part's scores into weights relative to its maximum. A query's parts are joined in their order (online
// softmax; Milakov and Gimelshein, 2018): behind each other by one block, or, for one token of a long context, by the
// last of the blocks that take a part each. So the bits of an answer know nothing but the query, and the positions that
// it reads. Answers may be rounded to int8 beside.
//
// Where there are tensor cores they multiply a cache of F16 (attention_tiles.h). Else a block takes four queries at a
// time: warps share out the keys and write the scores, one warp a query turns them into weights, and then each thread
// sums four columns of every n-th value.
#include "attention_tiles.h"
#include "last_block.h"

constexpr int QUERIES = 4;                        // at once
constexpr int LANES = 4;                          // that multiply one key together

// Of each query: what the parts behind it gave, what its part does, for which registers have no room, and the
// positions that it reads.
struct Softmax {
    float top[QUERIES], total[QUERIES], part_top[QUERIES], part_total[QUERIES];
    int begin[QUERIES], end[QUERIES];
};
__device__ static inline Softmax& shared_softmax() {
    __shared__ Softmax softmax;
    return softmax;
}
// The queries, then the tile's scores, then the sums.
__device__ static inline float* shared_floats() {
    DYNAMIC_SHARED(float, floats);
    return floats;
}

// Floats from one unit of eight columns of Q queries to the next: [8][Q], and four so that lanes that read
// neighbours do not meet in a bank.
template <int Q> constexpr int UNIT = 8 * Q + 4;

// scores[KEYS][Q] of the part's positions `from` to `to` - 1, the first of which lies in `row`.
template <int Q, class T>
__device__ inline void score(Cache<T> cache, const float* x, float* scores, int row, int from, int to) {
    int share = lane() % LANES, n_eights = (cache.n + 7) / 8;
    for (int first = from + warp() * (WARP / LANES); first < to; first += n_warps() * (WARP / LANES)) {
        int i = first + lane() / LANES, of_key = cache.after(row, min(i, to - 1) - from);
        float s[Q] = {}, key[8], four[4];
        UNROLL(Q == 1 ? 2 : 1)                    // more would spill
        for (int unit = share; unit < n_eights; unit += LANES) {
            cache.keys.template load<8>(of_key, unit, key);
            for (int m = 0; m < 8 * Q; m += 4) {
                load4(x + unit * UNIT<Q> + m, four);
                for (int k = m; k < m + 4; k++) s[k % Q] = fmaf(key[k / Q], four[k - m], s[k % Q]);
            }
        }
        for (int j = 0; j < Q; j++) {
            for (int d = LANES / 2; d; d /= 2) s[j] += __shfl_xor_sync(ALL_LANES, s[j], d);
            if (share == 0 && i < to) scores[i * Q + j] = s[j];
        }
    }
}

// One warp's query: every Q-th score, from `low` to n - 1, becomes a weight, relative to the part's maximum; the
// others before `to` get none.
template <int Q> __device__ inline void soften(float* scores, int low, int n, int to, float& top, float& total) {
    float sum = 0.f;
    n = min(n, to), top = LOWEST;
    for (int i = lane(); i < n; i += WARP)
        if (i >= low) top = fmaxf(top, scores[i * Q]);
    top = warp_max(top);
    for (int i = lane(); i < to; i += WARP) {
        scores[i * Q] = low <= i && i < n ? expf(scores[i * Q] - top) : 0.f;
        sum += scores[i * Q];
    }
    total = warp_sum(sum);
}

// Queries `first`, ... `first` + Q - 1 over their positions from begin to end - 1. After `last` - 1 that one stands in
// again, and nothing is written.
template <int Q, class T, class Out>
__device__ inline void attend(Cache<T> cache, Queries queries, Out out, int first, int last, int begin, int end,
                              float scale) {
    Softmax& softmax = shared_softmax();
    int n = cache.n, n_eights = (n + 7) / 8, n_units = (n + 3) / 4, n_groups = (int)blockDim.x / n_units;
    int group = (int)threadIdx.x / n_units, unit = (int)threadIdx.x % n_units;
    float *x = shared_floats(), *scores = x + n_eights * UNIT<Q>, *sums = scores + Q * KEYS;
    int least = end, longest = begin;
    for (int j = 0; j < Q; j++) {
        int i = min(first + j, last - 1);
        int from = max(queries.begin(i), begin), to = min(queries.end(i), end);
        least = min(least, from), longest = max(longest, to);
        if (threadIdx.x == 0) softmax.begin[j] = from, softmax.end[j] = to;
        if (threadIdx.x == 0) softmax.top[j] = LOWEST, softmax.total[j] = 0.f;  // of nothing
        for (int k = threadIdx.x; k < 8 * n_eights; k += blockDim.x)
            x[k / 8 * UNIT<Q> + k % 8 * Q + j] = k < n ? queries.q[(size_t)queries.row(i) * n + k] * scale : 0.f;
    }
    __syncthreads();
    for (int part = least / KEYS * KEYS; part < longest; part += KEYS) {
        int from = max(least - part, 0), to = min(longest - part, KEYS), row = (part + from) % cache.n_rows;
        score<Q>(cache, x, scores, row, from, to);
        __syncthreads();
        if (warp() < Q) {
            float top, total;
            soften<Q>(scores + warp(), softmax.begin[warp()] - part, softmax.end[warp()] - part, to, top, total);
            if (lane() == 0) softmax.part_top[warp()] = top, softmax.part_total[warp()] = total;
        }
        __syncthreads();
        float sum[Q][4] = {}, value[4];
        int begin_of_group = group + (from + n_groups - 1 - group) / n_groups * n_groups;  // the first from `from` on
        UNROLL(Q == 1 ? 4 : 1)
        for (int i = group < n_groups ? begin_of_group : to; i < to; i += n_groups) {
            cache.values.template load<4>(cache.after(row, i - from), unit, value);
            for (int j = 0; j < Q; j++) {
                float weight = scores[i * Q + j];
                if (weight == 0.f) continue;      // of a position that the query may not read, perhaps
                for (int k = 0; k < 4; k++) sum[j][k] = fmaf(weight, value[k], sum[j][k]);
            }
        }
        UNROLL(Q)                                 // or `sum` would lie in memory
        for (int j = 0; j < Q; j++) {
            for (int k = 0; k < 4; k++) sums[4 * threadIdx.x + k] = sum[j][k];
            __syncthreads();
            Factors by(softmax.top[j], softmax.part_top[j]);
            Sum all{by.top, fmaf(softmax.part_total[j], by.its, softmax.total[j] * by.mine), 0.f};
            for (int column = threadIdx.x; column < n && first + j < last; column += blockDim.x) {
                all.of_values = sums[column];
                for (int g = 1; g < n_groups; g++) all.of_values += sums[4 * g * n_units + column];
                int to_row = queries.row(first + j);
                float so_far = part <= least ? 0.f : out.before(to_row, column);
                out.put(to_row, column, by, all, so_far, part + KEYS >= longest);
            }
            __syncthreads();                      // the sums, and the scores, are about to be written again
            if (threadIdx.x == 0) softmax.top[j] = all.top, softmax.total[j] = all.total;
        }
    }
}
// Queries `first` to `last` - 1.
template <class T, class Out>
__device__ inline void attend_some(Cache<T> cache, Queries queries, Out out, int first, int last, int begin, int end,
                                   float scale) {
#ifdef TENSOR_CORES
    if constexpr (sizeof(T) == sizeof(__half))
        if (cache.n <= WIDEST_IN_TILES) {
            if (Out::MOST_TILES == 1 || last - first <= 8) attend_tiles<1>(cache, queries, out, first, last, begin, end, scale);
            else attend_tiles<Out::MOST_TILES>(cache, queries, out, first, last, begin, end, scale);
            return;
        }
#endif
    do {
        if (first + 1 < last) attend<QUERIES>(cache, queries, out, first, last, begin, end, scale);
        else attend<1>(cache, queries, out, first, last, begin, end, scale);
        first += QUERIES;
    } while (sizeof(T) == sizeof(__half) && first < last);  // of the others a block has no more
}

// q[n_tokens][n_head][head_dim], keys and values[n_slots][n_head_kv][n_rows][head_dim] -> y like q. Token t reads
// positions up to positions[t], behind which are the tokens' slots (slots.h): one and the same, or n_apart is n_tokens,
// and no block has queries of two. sinks[n_head].
// grid: (blocks that share out the queries of a key/value head, n_head_kv).
template <class T>
__device__ inline void attention(const float* q, const T* keys, const T* values, const int* positions,
                                 float* y, int n_tokens, int n_head, int n_head_kv, int head_dim, int n_rows,
                                 Sinks sinks, int window, float scale, int n_slots, int n_apart, Rounded rounded) {
    int kv_head = (int)blockIdx.y, block = (int)blockIdx.x, blocks = (int)gridDim.x;
    Queries queries(q, positions, n_tokens, n_head, n_head_kv, kv_head, window);
    int first = queries.first_of(block, blocks, n_apart), last = queries.first_of(block + 1, blocks, n_apart);
    int slot = slot_of(positions, n_tokens, block / (blocks / n_apart), n_slots);
    attend_some(Cache<T>(keys, values, slot * n_head_kv + kv_head, n_slots * n_head_kv, n_rows, head_dim), queries,
                Answer{y, sinks, head_dim, n_head}, first, last, 0, 0x7fffffff, scale);
    rounded.round(y, queries, first, last, head_dim);  // the last barrier of attend_some lies behind the answers
}

// Answers to some queries of a token from their parts' records, by a block of threads.
__device__ inline void join(const float* partial, float* y, Queries queries, int first, int last, int n, int n_parts,
                            Sinks sinks) {
    int n_used = (queries.end(first) - 1) / KEYS - queries.begin(first) / KEYS + 1, stride = n + 2;
    for (int i = threadIdx.x; i < (last - first) * n; i += blockDim.x) {
        int row = queries.row(first + i / n), column = i % n;
        const float* records = partial + (size_t)row * n_parts * stride;
        Sum all = sum_of_nothing(), next{records[0], records[1], records[2 + column]};
        UNROLL(1)                                 // more would spill; so the next part's loads go out by hand
        for (int part = 0; part < n_used; part++) {
            Sum of_part = next;
            const float* record = records + min(part + 1, n_used - 1) * stride;
            next = {record[0], record[1], record[2 + column]};
            all = all.joined(of_part);
        }
        y[(size_t)row * n + column] = sinks.answer(row % queries.n_head, all);
    }
}

// The same for n_apart tokens of as many slots, or one, a block for a part of a token's positions, by way of
// partial[n_apart][n_head][n_parts][2 + head_dim]: maximum, total and sums. The first part is that of the first
// position that the token reads; those after its last one are left alone. arrived[grid.y] counts blocks, and is 0
// before and after. grid: (n_parts, blocks that share out the queries of a key/value head * n_head_kv).
template <class T>
__device__ inline void attention_part(const float* q, const T* keys, const T* values, const int* positions,
                                      float* partial, unsigned* arrived, float* y, int n_head, int n_head_kv,
                                      int head_dim, int n_rows, int n_parts, Sinks sinks, int window, float scale,
                                      int n_slots, int n_apart, Rounded rounded) {
    int kv_head = (int)blockIdx.y % n_head_kv, part = (int)blockIdx.x;
    int block = (int)blockIdx.y / n_head_kv, blocks = (int)gridDim.y / n_head_kv;
    Queries queries(q, positions, n_apart, n_head, n_head_kv, kv_head, window);
    int first = queries.first_of(block, blocks, n_apart), last = queries.first_of(block + 1, blocks, n_apart);
    int token = block / (blocks / n_apart);
    int slot = slot_of(positions, n_apart, first / queries.group, n_slots);  // by `token` would spill on sm_75
    int begin = (queries.begin_of(token) / KEYS + part) * KEYS;
    if (begin < queries.end_of(token))
        attend_some(Cache<T>(keys, values, slot * n_head_kv + kv_head, n_slots * n_head_kv, n_rows, head_dim), queries,
                    PartAnswer{partial, head_dim, part, n_parts}, first, last, begin, begin + KEYS, scale);
    if (!comes_last(arrived + blockIdx.y, gridDim.x)) return;
    join(partial, y, queries, first, last, head_dim, n_parts, sinks);
    rounded.round(y, queries, first, last, head_dim);   // each thread reads what it has written
}

#define ATTENTION(NAME, T) \
KERNEL_WIDE attention_##NAME(const float* __restrict__ q, const T* __restrict__ keys, \
                             const T* __restrict__ values, const int* __restrict__ positions, \
                             float* __restrict__ y, int n_tokens, int n_head, int n_head_kv, int head_dim, \
                             int n_rows, const float* __restrict__ sinks, int has_sinks, int window, \
                             float scale, int n_slots, int n_apart, signed char* __restrict__ rounded, \
                             float* __restrict__ d, int* __restrict__ sum, int rounds) { \
    attention(q, keys, values, positions, y, n_tokens, n_head, n_head_kv, head_dim, n_rows, \
              Sinks{sinks, has_sinks}, window, scale, n_slots, n_apart, Rounded{rounded, d, sum, rounds}); \
} \
KERNEL_WIDE attention_part_##NAME(const float* __restrict__ q, const T* __restrict__ keys, \
                                  const T* __restrict__ values, const int* __restrict__ positions, \
                                  float* partial, unsigned* arrived, float* __restrict__ y, int n_head, \
                                  int n_head_kv, int head_dim, int n_rows, int n_parts, \
                                  const float* __restrict__ sinks, int has_sinks, int window, float scale, \
                                  int n_slots, int n_apart, signed char* __restrict__ rounded, \
                                  float* __restrict__ d, int* __restrict__ sum, int rounds) { \
    attention_part(q, keys, values, positions, partial, arrived, y, n_head, n_head_kv, head_dim, n_rows, n_parts, \
                   Sinks{sinks, has_sinks}, window, scale, n_slots, n_apart, Rounded{rounded, d, sum, rounds}); \
}
ATTENTION(f16, __half) ATTENTION(f32, float) ATTENTION(q8_0, signed char)
