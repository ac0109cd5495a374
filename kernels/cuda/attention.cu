// Causal grouped-query attention over the KV cache: y = softmax(scale q . keys) . values, of all positions
// up to a token's own or of the last `window` of them; position p lies in row p % n_rows of the cache. A sink
// is one more score of a head, which takes a share and has no value.
//
// A block takes up to four queries of one key/value head, so that what it loads serves all of them: the
// queries are those of the head's group for one token, then for the next. It takes the positions in parts, which
// begin at multiples of 256: warps share out the keys and write the scores, one warp a query turns them into weights
// relative to the part's maximum, and then each thread sums four columns of every n-th value. A query's parts are
// joined in their order (online softmax; Milakov and Gimelshein, 2018): behind each other by one block, or, for one
// token of a long context, by the last of the blocks that take a part each. So the bits of an answer know
// nothing but the query, and the positions that it reads. Answers may be rounded to int8 beside.
#include "last_block.h"
#include "quantise.h"
#include "weights.h"

constexpr int QUERIES = 4, KEYS = 256;            // at once in a block; in a part
constexpr int LANES = 4;                          // that multiply one key together
constexpr float LOWEST = -3.402823466e38f;        // the maximum of no scores: a number that can be subtracted

// The largest score of some positions, the total of their weights, and a sum of values by weights.
struct Sum {
    float top, total, of_values;
    // These positions and others behind them.
    __device__ Sum joined(Sum next) const {
        float larger = fmaxf(top, next.top), mine = expf(top - larger), its = expf(next.top - larger);
        return {larger, fmaf(next.total, its, total * mine), fmaf(next.of_values, its, of_values * mine)};
    }
};
__device__ inline Sum sum_of_nothing() { return {LOWEST, 0.f, 0.f}; }

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

// One head's keys or values of one layer: a row of n numbers a position. T: float, __half, or signed char for
// Q8_0, where the bytes of all heads' rows are followed by their scales.
template <class T> struct Rows {
    const T* numbers;
    int n;
    __device__ Rows(const T* all, int kv_head, int, int n_ctx, int head_dim)
        : numbers(all + (size_t)kv_head * n_ctx * head_dim), n(head_dim) {}
    // N numbers of a row. Only rows of whole eights begin at 16 bytes.
    template <int N> __device__ void load(int position, int unit, float* w) const {
        load_some<N>(numbers + (size_t)position * n + N * unit, n - N * unit, n % 8 == 0, w);
    }
};
template <> struct Rows<signed char> {
    const signed char* numbers;
    const __half* scales;
    int n;
    __device__ Rows(const signed char* all, int kv_head, int n_head_kv, int n_ctx, int head_dim)
        : numbers(all + (size_t)kv_head * n_ctx * head_dim),
          scales((const __half*)(all + (size_t)n_head_kv * n_ctx * head_dim) +
                 (size_t)kv_head * n_ctx * (head_dim / BLOCK)),
          n(head_dim) {}
    template <int N> __device__ void load(int position, int unit, float* w) const {
        float d = value(scales[(size_t)position * (n / BLOCK) + N * unit / BLOCK]);
        union { unsigned words[N / 4]; signed char q[N]; } u;
        const unsigned* from = (const unsigned*)(numbers + (size_t)position * n + N * unit);
        if constexpr (N == 8) {
            uint2 both = *(const uint2*)from;
            u.words[0] = both.x, u.words[1] = both.y;
        } else u.words[0] = *from;
        for (int k = 0; k < N; k++) w[k] = d * (float)u.q[k];
    }
};
template <class T> struct Cache {
    Rows<T> keys, values;
    int n, n_rows;
    __device__ Cache(const T* all_keys, const T* all_values, int kv_head, int n_head_kv, int rows, int head_dim)
        : keys(all_keys, kv_head, n_head_kv, rows, head_dim),
          values(all_values, kv_head, n_head_kv, rows, head_dim), n(head_dim), n_rows(rows) {}
    // The row of the i-th position after that of `row`; what is read together lies in different rows.
    __device__ int after(int row, int i) const { return row + i < n_rows ? row + i : row + i - n_rows; }
};

// The queries of one key/value head, in the order that the head of this file says.
struct Queries {
    const float* q;
    const int* positions;
    int n_head, group, first_head, n, window;     // n: all of them
    __device__ Queries(const float* all, const int* positions_of, int n_tokens, int heads, int n_head_kv,
                       int kv_head, int seen)
        : q(all), positions(positions_of), n_head(heads), group(heads / n_head_kv),
          first_head(kv_head * group), n(n_tokens * group), window(seen) {}
    __device__ int row(int i) const { return i / group * n_head + first_head + i % group; }
    // The positions that a query reads.
    __device__ int end(int i) const { return positions[i / group] + 1; }
    __device__ int begin(int i) const { return window ? max(end(i) - window, 0) : 0; }
};

// One more score of each head; none unless `there`.
struct Sinks {
    const float* scores;
    int there;
    __device__ float answer(int head, Sum all) const {
        if (!there) return all.of_values / all.total;
        float larger = fmaxf(all.top, scores[head]), factor = expf(all.top - larger);
        return all.of_values * factor / fmaf(all.total, factor, expf(scores[head] - larger));
    }
};

// Where answers are rounded to, if anywhere: blocks of 32, of which a head has whole ones.
struct Rounded {
    signed char* q;
    float* d;
    int *sum, there;
    // By a block of threads; a lane's numbers of y are its own, or behind a barrier.
    __device__ void round(const float* y, Queries queries, int first, int n) const {
        int n_queries = min(queries.n - first, QUERIES), of_query = n / BLOCK;
        for (int i = warp(); there && i < n_queries * of_query; i += n_warps()) {
            size_t at = (size_t)queries.row(first + i / of_query) * n + i % of_query * BLOCK + lane();
            quantise_block(y[at], at, q, d, sum);
        }
    }
};

// Where a query's sums go: the answer itself, in whose place the sum of the parts so far stands meanwhile, or a
// part's maximum, total and sums.
struct Answer {
    float* y;
    Sinks sinks;
    int n, n_head;
    // Gives top and total of all parts so far.
    __device__ Sum put(int row, int column, Sum before, Sum part, bool is_first, bool is_last) const {
        float& place = y[(size_t)row * n + column];
        before.of_values = is_first ? 0.f : place;
        Sum all = before.joined(part);
        place = is_last ? sinks.answer(row % n_head, all) : all.of_values;
        return all;
    }
};
struct PartAnswer {
    float* partial;
    int n, part, n_parts;
    __device__ Sum put(int row, int column, Sum, Sum sum, bool, bool) const {
        float* record = partial + ((size_t)row * n_parts + part) * (n + 2);
        if (column == 0) record[0] = sum.top, record[1] = sum.total;
        record[2 + column] = sum.of_values;
        return sum;
    }
};

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

// Queries `first`, ... `first` + Q - 1 over their positions from begin to end - 1. After the last query it
// stands in again, and nothing is written.
template <int Q, class T, class Out>
__device__ inline void attend(Cache<T> cache, Queries queries, Out out, int first, int begin, int end,
                              float scale) {
    Softmax& softmax = shared_softmax();
    int n = cache.n, n_eights = (n + 7) / 8, n_units = (n + 3) / 4, n_groups = (int)blockDim.x / n_units;
    int group = (int)threadIdx.x / n_units, unit = (int)threadIdx.x % n_units;
    float *x = shared_floats(), *scores = x + n_eights * UNIT<Q>, *sums = scores + Q * KEYS;
    int least = end, longest = begin;
    for (int j = 0; j < Q; j++) {
        int i = min(first + j, queries.n - 1);
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
            Sum before{softmax.top[j], softmax.total[j], 0.f}, all = before;
            for (int column = threadIdx.x; column < n && first + j < queries.n; column += blockDim.x) {
                float s = sums[column];
                for (int g = 1; g < n_groups; g++) s += sums[4 * g * n_units + column];
                Sum of_part{softmax.part_top[j], softmax.part_total[j], s};
                all = out.put(queries.row(first + j), column, before, of_part, part <= least, part + KEYS >= longest);
            }
            __syncthreads();                      // the sums, and the scores, are about to be written again
            if (threadIdx.x == 0) softmax.top[j] = all.top, softmax.total[j] = all.total;
        }
    }
}
template <class T, class Out>
__device__ inline void attend_some(Cache<T> cache, Queries queries, Out out, int first, int begin, int end,
                                   float scale) {
    if (first + 1 < queries.n) attend<QUERIES>(cache, queries, out, first, begin, end, scale);
    else attend<1>(cache, queries, out, first, begin, end, scale);
}

// q[n_tokens][n_head][head_dim], keys and values[n_head_kv][n_rows][head_dim] -> y like q. Token t reads
// positions up to positions[t]. sinks[n_head]. grid: (queries of a key/value head / 4, n_head_kv).
template <class T>
__device__ inline void attention(const float* q, const T* keys, const T* values, const int* positions,
                                 float* y, int n_tokens, int n_head, int n_head_kv, int head_dim, int n_rows,
                                 Sinks sinks, int window, float scale, Rounded rounded) {
    int kv_head = (int)blockIdx.y, first = (int)blockIdx.x * QUERIES;
    Queries queries(q, positions, n_tokens, n_head, n_head_kv, kv_head, window);
    attend_some(Cache<T>(keys, values, kv_head, n_head_kv, n_rows, head_dim), queries,
                Answer{y, sinks, head_dim, n_head}, first, 0, 0x7fffffff, scale);
    rounded.round(y, queries, first, head_dim);   // attend's last barrier lies behind the answers
}

// Answers to some queries of one token from their parts' records, by a block of threads.
__device__ inline void join(const float* partial, float* y, Queries queries, int first, int n, int n_parts,
                            Sinks sinks) {
    int n_queries = min(queries.n - first, QUERIES);
    int n_used = (queries.end(0) - 1) / KEYS - queries.begin(0) / KEYS + 1, stride = n + 2;
    for (int i = threadIdx.x; i < n_queries * n; i += blockDim.x) {
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
        y[(size_t)row * n + column] = sinks.answer(row, all);
    }
}

// The same for one token, a block for a part of its positions, by way of partial[n_head][n_parts][2 + head_dim]:
// maximum, total and sums. The first part is that of the first position that it reads; those after its last one are
// left alone. arrived[queries of a key/value head / 4 * n_head_kv] counts blocks, and is 0 before and after.
// grid: (n_parts, queries of a key/value head / 4 * n_head_kv).
template <class T>
__device__ inline void attention_part(const float* q, const T* keys, const T* values, const int* positions,
                                      float* partial, unsigned* arrived, float* y, int n_head, int n_head_kv,
                                      int head_dim, int n_rows, int n_parts, Sinks sinks, int window, float scale,
                                      Rounded rounded) {
    int kv_head = (int)blockIdx.y % n_head_kv, part = (int)blockIdx.x, first = (int)blockIdx.y / n_head_kv * QUERIES;
    Queries queries(q, positions, 1, n_head, n_head_kv, kv_head, window);
    int begin = (queries.begin(0) / KEYS + part) * KEYS;
    if (begin < queries.end(0))
        attend_some(Cache<T>(keys, values, kv_head, n_head_kv, n_rows, head_dim), queries,
                    PartAnswer{partial, head_dim, part, n_parts}, first, begin, begin + KEYS, scale);
    if (!comes_last(arrived + blockIdx.y, gridDim.x)) return;
    join(partial, y, queries, first, head_dim, n_parts, sinks);
    rounded.round(y, queries, first, head_dim);   // each thread reads what it has written
}

#define ATTENTION(NAME, T) \
KERNEL_WIDE attention_##NAME(const float* __restrict__ q, const T* __restrict__ keys, \
                             const T* __restrict__ values, const int* __restrict__ positions, \
                             float* __restrict__ y, int n_tokens, int n_head, int n_head_kv, int head_dim, \
                             int n_rows, const float* __restrict__ sinks, int has_sinks, int window, \
                             float scale, signed char* __restrict__ rounded, float* __restrict__ d, \
                             int* __restrict__ sum, int rounds) { \
    attention(q, keys, values, positions, y, n_tokens, n_head, n_head_kv, head_dim, n_rows, \
              Sinks{sinks, has_sinks}, window, scale, Rounded{rounded, d, sum, rounds}); \
} \
KERNEL_WIDE attention_part_##NAME(const float* __restrict__ q, const T* __restrict__ keys, \
                                  const T* __restrict__ values, const int* __restrict__ positions, \
                                  float* partial, unsigned* arrived, float* __restrict__ y, int n_head, \
                                  int n_head_kv, int head_dim, int n_rows, int n_parts, \
                                  const float* __restrict__ sinks, int has_sinks, int window, float scale, \
                                  signed char* __restrict__ rounded, float* __restrict__ d, \
                                  int* __restrict__ sum, int rounds) { \
    attention_part(q, keys, values, positions, partial, arrived, y, n_head, n_head_kv, head_dim, n_rows, n_parts, \
                   Sinks{sinks, has_sinks}, window, scale, Rounded{rounded, d, sum, rounds}); \
}
ATTENTION(f16, __half) ATTENTION(f32, float) ATTENTION(q8_0, signed char)
