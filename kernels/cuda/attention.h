// What the kernels of attention share: the cache, the queries of a key/value head, and where a query's sums go.
#pragma once
#include "quantise.h"
#include "slots.h"
#include "weights.h"

constexpr int KEYS = 256;                         // positions of a part
constexpr float LOWEST = -3.402823466e38f;        // the maximum of no scores: a number that can be subtracted

// By what is multiplied what some positions gave, and what those behind them give: both relative to the larger maximum.
struct Factors {
    float top, mine, its;
    __device__ Factors(float largest, float of_mine, float of_its) : top(largest), mine(of_mine), its(of_its) {}
    __device__ Factors(float my_top, float its_top)
        : top(fmaxf(my_top, its_top)), mine(expf(my_top - top)), its(expf(its_top - top)) {}
};
// The largest score of some positions, the total of their weights, and a sum of values by weights.
struct Sum {
    float top, total, of_values;
    // These positions and others behind them.
    __device__ Sum joined(Sum next) const {
        Factors by(top, next.top);
        return {by.top, fmaf(next.total, by.its, total * by.mine), fmaf(next.of_values, by.its, of_values * by.mine)};
    }
};
__device__ inline Sum sum_of_nothing() { return {LOWEST, 0.f, 0.f}; }

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
    // Of `blocks` that share out the queries evenly, those of each token by itself where n_apart is their number and
    // not 1: the first query of one.
    __device__ int first_of(int block, int blocks, int n_apart) const {
        int each = n / n_apart, of_each = blocks / n_apart, size = (each + of_each - 1) / of_each;
        return block / of_each * each + min(each, block % of_each * size);
    }
    // The positions that a token reads, and a query.
    __device__ int end_of(int token) const { return positions[token] + 1; }
    __device__ int begin_of(int token) const { return window ? max(end_of(token) - window, 0) : 0; }
    __device__ int end(int i) const { return end_of(i / group); }
    __device__ int begin(int i) const { return begin_of(i / group); }
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
    // Queries `first` to `last` - 1, by a block of threads; a lane's numbers of y are its own, or behind a barrier.
    __device__ void round(const float* y, Queries queries, int first, int last, int n) const {
        int of_query = n / BLOCK;
        for (int i = warp(); there && i < (last - first) * of_query; i += n_warps()) {
            size_t at = (size_t)queries.row(first + i / of_query) * n + i % of_query * BLOCK + lane();
            quantise_block(y[at], at, q, d, sum);
        }
    }
};

// Where a query's sums go: the answer itself, in whose place the sum of the parts so far stands meanwhile, or a
// part's maximum, total and sums.
struct Answer {
    static constexpr int MOST_TILES = 2;          // that tensor cores take at once, of eight queries
    float* y;
    Sinks sinks;
    int n, n_head;
    // What the parts before gave.
    __device__ float before(int row, int column) const { return y[(size_t)row * n + column]; }
    // With a part's sum of values come top and total of it and all before it, and the factors of both.
    __device__ void put(int row, int column, Factors by, Sum all, float before, bool is_last) const {
        all.of_values = fmaf(all.of_values, by.its, before * by.mine);
        y[(size_t)row * n + column] = is_last ? sinks.answer(row % n_head, all) : all.of_values;
    }
};
struct PartAnswer {
    static constexpr int MOST_TILES = 1;          // more would spill on sm_90
    float* partial;
    int n, part, n_parts;
    __device__ float before(int, int) const { return 0.f; }
    __device__ void put(int row, int column, Factors, Sum all, float, bool) const {
        float* record = partial + ((size_t)row * n_parts + part) * (n + 2);
        if (column == 0) record[0] = all.top, record[1] = all.total;
        record[2 + column] = all.of_values;
    }
};
