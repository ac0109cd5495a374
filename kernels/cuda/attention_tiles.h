// Attention over a cache of F16 by tensor cores, for heads of up to 256 numbers.
//
// A block's queries are columns, eight to a tile, and A is the cache as it lies there. What is not F16 goes as two
// halves, which are multiplied one after the other into the same float: a query in units of a power of two of its own,
// so that its largest number lies between 2^14 and 2^15, and weights in units of 2^-14. A column's numbers depend on
// nothing but that column: how many there are beside it, and whether they are queries, does not matter.
//
// A part's 256 keys are shared out over eight warps, 32 each. A lane takes eight neighbouring numbers of a key at a
// time, so an mma multiplies of 32 numbers those whose place in an eight is below 4, and the next one the others. Warps
// soften what they have themselves, and leave the weights in shared memory; then each takes 32 columns of the values,
// and of the positions every n-th sixteen, where there are fewer columns than warps.
#pragma once
#include "attention.h"
#include "halves.h"
#include "tensor_cores.h"

#ifdef TENSOR_CORES
constexpr int WIDEST_IN_TILES = 256, CHUNK = 32;  // numbers of a head; of a row that are read at once
constexpr int MOST_COLUMNS = 16, WARPS = 8;       // of a block
constexpr float ONE = 16384.f;                    // a weight of 1

// Of each column: the row of its query and answer, the positions that it reads, the unit of its scores, what each warp
// has of a part, and all of it. Of all: the positions that any of them reads, and those that each one reads.
struct Columns {
    int row[MOST_COLUMNS], begin[MOST_COLUMNS], end[MOST_COLUMNS];
    int first, last, first_of_all, last_of_all;
    float unit[MOST_COLUMNS], tops[WARPS][MOST_COLUMNS], totals[WARPS][MOST_COLUMNS];
    float top[MOST_COLUMNS], total[MOST_COLUMNS], mine[MOST_COLUMNS], its[MOST_COLUMNS];
    __device__ bool sees(int c, int position) const { return begin[c] <= position && position < end[c]; }
    __device__ void find_range(int n) {
        first = first_of_all = begin[0], last = last_of_all = end[0];
        for (int c = 1; c < n; c++) {
            first = min(first, begin[c]), first_of_all = max(first_of_all, begin[c]);
            last = max(last, end[c]), last_of_all = min(last_of_all, end[c]);
        }
    }
    __device__ float part_top(int c) const {
        float top_of_part = tops[0][c];
        for (int w = 1; w < WARPS; w++) top_of_part = fmaxf(top_of_part, tops[w][c]);
        return top_of_part;
    }
    // The warps' part behind those before it.
    __device__ void join(int c) {
        Factors by(top[c], part_top(c));
        float total_of_part = totals[0][c];
        for (int w = 1; w < WARPS; w++) total_of_part += totals[w][c];
        top[c] = by.top, mine[c] = by.mine, its[c] = by.its;
        total[c] = fmaf(total_of_part, by.its, total[c] * by.mine);
    }
};
__device__ static inline Columns& shared_columns() {
    __shared__ Columns columns;
    return columns;
}
__device__ static inline uint4* shared_units() {
    DYNAMIC_SHARED(uint4, units_of_attention);
    return units_of_attention;
}

// What a block has in dynamic shared memory.
template <int TILES> struct Room {
    static constexpr int COLUMNS = 8 * TILES, STRIDE = COLUMNS + 4;
    int n_chunks, sum_stride;
    uint4* queries;                       // [2 n_chunks][TILES][lanes]: of B, two words of high halves, two of low
    uint2* weights;                               // [KEYS / 2][STRIDE]: of two neighbours, high halves and low
    float* sums;                                  // in their place, [groups of warps][COLUMNS][sum_stride]
    __device__ explicit Room(int n)
        : n_chunks((n + CHUNK - 1) / CHUNK), sum_stride(n_chunks * CHUNK + 4), queries(shared_units()),
          weights((uint2*)(queries + 2 * n_chunks * TILES * WARP)), sums((float*)weights) {}
    // So many warps have the same columns of values, and share out the positions.
    __device__ int n_groups() const { return WARPS / n_chunks; }
};

// N halves of a row that has n of them left, zeros after its end. whole: whether vectors may be read.
template <int N> __device__ inline void load_words(const __half* p, int n, bool whole, unsigned (&words)[N / 2]) {
    for (int k = 0; k < N / 2; k++) words[k] = 0;
    if (!whole) {
        __half zero = __float2half(0.f);
        for (int k = 0; k < N / 2; k++)
            words[k] = word_of_halves(2 * k < n ? p[2 * k] : zero, 2 * k + 1 < n ? p[2 * k + 1] : zero);
    } else if (n > 0) {
        if constexpr (N == 8) {
            uint4 four = *(const uint4*)p;
            words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
        } else {
            uint2 two = *(const uint2*)p;
            words[0] = two.x, words[1] = two.y;
        }
    }
}

// The block's queries as columns; those after the last are zero.
template <int TILES>
__device__ inline void lay_queries(Room<TILES> room, Columns& columns, const float* all, int n, int n_columns,
                                   float scale) {
    for (int c = warp(); c < 8 * TILES; c += n_warps()) {
        bool is_there = c < n_columns;
        const float* q = all + (is_there ? (size_t)columns.row[c] * n : 0);
        int bits = 0;
        for (int k = lane(); k < n; k += WARP) bits = max(bits, is_there ? size_bits(q[k] * scale) : 0);
        for (int d = WARP / 2; d; d /= 2) bits = max(bits, __shfl_xor_sync(ALL_LANES, bits, d));
        int exponent = max(bits >> 23, 15);       // below that the unit would be no normal number
        float factor = __int_as_float((127 + 14 + 127 - exponent) << 23);
        if (lane() == 0) columns.unit[c] = __int_as_float((exponent - 14) << 23);
        for (int k = 2 * lane(); k < room.n_chunks * CHUNK; k += 2 * WARP) {
            float a = is_there && k < n ? q[k] * scale * factor : 0.f;
            float b = is_there && k + 1 < n ? q[k + 1] * scale * factor : 0.f;
            int step = k / CHUNK * 2 + k % 8 / 4, of_lane = c % 8 * 4 + k % CHUNK / 8, word = k % 4 / 2;
            unsigned* unit = (unsigned*)(room.queries + (step * TILES + c / 8) * WARP + of_lane);
            uint2 both = in_halves(a, b);
            unit[word] = both.x, unit[2 + word] = both.y;
        }
    }
}

// Scores of 32 keys of the part, a warp's own: s[i][j] is of keys 16 i + 2 g and the one after it, for columns
// 8 j + 2 t and the one after it. The positions `from` to `to` - 1 are there, the first in `row`.
template <int TILES>
__device__ inline void multiply_keys(Cache<__half> cache, Room<TILES> room, float (&s)[2][TILES][4], int row, int from,
                                     int to) {
    int g = lane() / 4, t = lane() % 4, n = cache.n;
    bool whole = n % 8 == 0;
    int keys[2][2];
    for (int i = 0; i < 2; i++)
        for (int h = 0; h < 2; h++) {
            int key = 32 * warp() + 16 * i + 2 * g + h;
            keys[i][h] = cache.after(row, min(max(key, from), to - 1) - from);
        }
    UNROLL(1)                                     // two would spill on sm_80
    for (int chunk = 0; chunk < room.n_chunks; chunk++) {
        int column = chunk * CHUNK + 8 * t;
        unsigned words[2][2][4];
        for (int i = 0; i < 2; i++)
            for (int h = 0; h < 2; h++)
                load_words<8>(cache.keys.numbers + (size_t)keys[i][h] * n + column, n - column, whole, words[i][h]);
        for (int k = 0; k < 4; k += 2) {
            uint4 b[TILES];
            for (int j = 0; j < TILES; j++) b[j] = room.queries[((2 * chunk + k / 2) * TILES + j) * WARP + lane()];
            for (int low = 0; low < 2; low++)
                for (int j = 0; j < TILES; j++)
                    for (int i = 0; i < 2; i++)
                        mma_f16(s[i][j], {words[i][0][k], words[i][1][k], words[i][0][k + 1], words[i][1][k + 1]},
                                {low ? b[j].z : b[j].x, low ? b[j].w : b[j].y});
        }
    }
}

// A warp's scores become weights, relative to the part's maximum; those of positions that a column does not see get
// none. By a block of threads, with a barrier between.
template <int TILES>
__device__ inline void soften_tiles(Room<TILES> room, Columns& columns, float (&s)[2][TILES][4], int part) {
    int g = lane() / 4, t = lane() % 4, first = part + 32 * warp() + 2 * g;
    for (int j = 0; j < TILES; j++)
        for (int e = 0; e < 2; e++) {
            int c = 8 * j + 2 * t + e;
            float top = LOWEST, unit = columns.unit[c];
            for (int i = 0; i < 2; i++)
                for (int h = 0; h < 2; h++) {
                    float& score = s[i][j][2 * h + e];
                    score *= unit;
                    if (columns.sees(c, first + 16 * i + h)) top = fmaxf(top, score);
                }
            for (int d = WARP / 2; d >= 4; d /= 2) top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, d));
            if (g == 0) columns.tops[warp()][c] = top;
        }
    __syncthreads();
    for (int j = 0; j < TILES; j++) {
        for (int e = 0; e < 2; e++) {
            int c = 8 * j + 2 * t + e;
            float top = columns.part_top(c), total = 0.f;
            for (int i = 0; i < 2; i++)
                for (int h = 0; h < 2; h++) {
                    float& score = s[i][j][2 * h + e];
                    score = columns.sees(c, first + 16 * i + h) ? expf(score - top) : 0.f;
                    total += score;
                }
            for (int d = WARP / 2; d >= 4; d /= 2) total += __shfl_xor_sync(ALL_LANES, total, d);
            if (g == 0) columns.totals[warp()][c] = total;
        }
        for (int i = 0; i < 2; i++) {
            uint2 a = in_halves(s[i][j][0] * ONE, s[i][j][2] * ONE), b = in_halves(s[i][j][1] * ONE, s[i][j][3] * ONE);
            uint2* to = room.weights + (16 * warp() + 8 * i + g) * Room<TILES>::STRIDE + 8 * j + 2 * t;
            *(uint4*)to = {a.x, a.y, b.x, b.y};
        }
    }
}

// A word of two halves of which one is infinite or no number.
__device__ inline bool is_not_finite(unsigned word) {
    return (word & 0x7c00u) == 0x7c00u || (word & 0x7c000000u) == 0x7c000000u;
}

// A lane's values: of positions 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of a sixteen, four neighbouring columns from 4 g on.
struct Values {
    unsigned words[4][2];
    __device__ static int place(int k) { return 2 * ((int)threadIdx.x % 4) + k % 2 + k / 2 * 8; }
    // A of columns 4 g + 2 i and the one after it.
    __device__ void fragment(int i, unsigned (&a)[4]) const {
        for (int k = 0; k < 4; k++)
            a[k] = __byte_perm(words[k / 2 * 2][i], words[k / 2 * 2 + 1][i], k % 2 ? 0x7632 : 0x5410);
    }
    __device__ bool are_finite() const {
        bool found = false;
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < 2; i++) found |= is_not_finite(words[k][i]);
        return !__any_sync(ALL_LANES, found);
    }
};

// B of eight columns' weights of a sixteen.
struct Weights {
    unsigned high[2], low[2];
    template <int TILES> __device__ Weights(Room<TILES> room, int sixteen, int j) {
        const uint2* from = room.weights + (8 * sixteen + lane() % 4) * Room<TILES>::STRIDE + 8 * j + lane() / 4;
        for (int k = 0; k < 2; k++) {
            uint2 two = from[4 * k * Room<TILES>::STRIDE];
            high[k] = two.x, low[k] = two.y;
        }
    }
};

// The same sums where a position that not every column sees has values that are not finite, which 0 would not silence:
// each column by itself, with zeros in place of what it does not see.
template <int TILES>
__device__ inline void add_apart(Room<TILES> room, const Columns& columns, const Values& values, int part, int sixteen,
                                 float (&sum)[2][TILES][4]) {
    for (int j = 0; j < TILES; j++) {
        Weights weights(room, sixteen, j);
        UNROLL(1)
        for (int column = 0; column < 8; column++) {
            unsigned seen[2];
            for (int k = 0; k < 2; k++) {
                int position = part + 16 * sixteen + Values::place(2 * k);
                seen[k] = (columns.sees(8 * j + column, position) ? 0xffffu : 0) |
                          (columns.sees(8 * j + column, position + 1) ? 0xffff0000u : 0);
            }
            for (int i = 0; i < 2; i++) {
                unsigned a[4];
                float own[4];
                values.fragment(i, a);
                for (int k = 0; k < 4; k++) a[k] &= seen[k / 2];
                for (int k = 0; k < 4; k++) own[k] = sum[i][j][k];
                mma_f16(own, a, weights.high);
                mma_f16(own, a, weights.low);
                for (int k = 0; k < 4; k++)
                    if (2 * (lane() % 4) + k % 2 == column) sum[i][j][k] = own[k];
            }
        }
    }
}

// Values of the part's positions `from` to `to` - 1 by their weights: sum[i][j] is of a warp's columns 4 g + 2 i and
// the one after it, for queries 8 j + 2 t and the one after it.
template <int TILES>
__device__ inline void add_values(Cache<__half> cache, Room<TILES> room, const Columns& columns, int part, int row,
                                  int from, int to, float (&sum)[2][TILES][4]) {
    int n = cache.n, n_groups = room.n_groups(), group = warp() / room.n_chunks;
    int column = warp() % room.n_chunks * CHUNK + lane() / 4 * 4, first = from / 16;
    const __half* base = cache.values.numbers + column;
    bool whole = n % 4 == 0;
    first += (group + n_groups - first % n_groups) % n_groups;
    UNROLL(TILES == 1 ? 2 : 1)
    for (int sixteen = group < n_groups ? first : KEYS; 16 * sixteen < to; sixteen += n_groups) {
        Values values;
        for (int k = 0; k < 4; k++) {
            int i = 16 * sixteen + Values::place(k);
            bool is_there = from <= i && i < to;
            const __half* own = base + (size_t)cache.after(row, is_there ? i - from : 0) * n;
            load_words<4>(own, is_there ? n - column : 0, whole, values.words[k]);
        }
        int begin = part + 16 * sixteen;
        bool is_mixed = begin < columns.first_of_all || begin + 16 > columns.last_of_all;
        if (is_mixed && !values.are_finite()) {
            add_apart(room, columns, values, part, sixteen, sum);
            continue;
        }
        for (int j = 0; j < TILES; j++) {
            Weights weights(room, sixteen, j);
            for (int i = 0; i < 2; i++) {
                unsigned a[4];
                values.fragment(i, a);
                mma_f16(sum[i][j], a, weights.high);
                mma_f16(sum[i][j], a, weights.low);
            }
        }
    }
}

// Each group's sums of each column.
template <int TILES> __device__ inline void leave_sums(Room<TILES> room, const float (&sum)[2][TILES][4]) {
    int group = warp() / room.n_chunks, column = warp() % room.n_chunks * CHUNK + lane() / 4 * 4;
    if (group >= room.n_groups()) return;
    for (int j = 0; j < TILES; j++)
        for (int e = 0; e < 2; e++) {
            int c = group * room.COLUMNS + 8 * j + lane() % 4 * 2 + e;
            float4* to = (float4*)(room.sums + c * room.sum_stride + column);
            *to = {sum[0][j][e], sum[0][j][2 + e], sum[1][j][e], sum[1][j][2 + e]};
        }
}

// Queries `first` to `last` - 1, at most 8 TILES, over their positions from begin to end - 1.
template <int TILES, class Out>
__device__ inline void attend_tiles(Cache<__half> cache, Queries queries, Out out, int first, int last, int begin,
                                    int end, float scale) {
    Columns& columns = shared_columns();
    Room<TILES> room(cache.n);
    int own = (int)threadIdx.x, n_columns = last - first;
    if (own < room.COLUMNS) {
        bool is_there = own < n_columns;
        columns.row[own] = is_there ? queries.row(first + own) : 0;
        columns.begin[own] = is_there ? max(queries.begin(first + own), begin) : 0;
        columns.end[own] = is_there ? min(queries.end(first + own), end) : 0;
        columns.top[own] = LOWEST, columns.total[own] = 0.f;  // of nothing
    }
    __syncthreads();
    if (own == 0) columns.find_range(n_columns);
    lay_queries(room, columns, queries.q, cache.n, n_columns, scale);
    __syncthreads();
    for (int part = columns.first / KEYS * KEYS; part < columns.last; part += KEYS) {
        int from = max(columns.first - part, 0), to = min(columns.last - part, KEYS), row = (part + from) % cache.n_rows;
        {
            float s[2][TILES][4] = {};
            if (32 * warp() < to && 32 * warp() + 32 > from) multiply_keys(cache, room, s, row, from, to);
            soften_tiles(room, columns, s, part);
        }
        __syncthreads();                          // the weights are there
        if (own < room.COLUMNS) columns.join(own);
        float sum[2][TILES][4] = {};
        add_values(cache, room, columns, part, row, from, to, sum);
        __syncthreads();                          // and are not read any more
        leave_sums(room, sum);
        __syncthreads();                          // the sums are there
        for (int c = warp(); c < n_columns; c += n_warps()) {
            Factors by(columns.top[c], columns.mine[c], columns.its[c]);
            for (int four = lane(); four < cache.n; four += 4 * WARP) {
                float before[4] = {};             // loaded together
                for (int k = 0; k < 4; k++)
                    if (part > columns.first && four + k * WARP < cache.n)
                        before[k] = out.before(columns.row[c], four + k * WARP);
                for (int k = 0; k < 4; k++) {
                    int column = four + k * WARP;
                    if (column >= cache.n) break;
                    const float* of_group = room.sums + c * room.sum_stride + column;
                    float s = *of_group;
                    UNROLL(1)                     // more would spill on sm_120
                    for (int i = 1; i < room.n_groups(); i++) s += of_group[i * room.COLUMNS * room.sum_stride];
                    Sum all{columns.top[c], columns.total[c], s / ONE};
                    out.put(columns.row[c], column, by, all, before[k], part + KEYS >= columns.last);
                }
            }
        }
    }
    __syncthreads();                              // the answers are there, for all threads
}
#endif
