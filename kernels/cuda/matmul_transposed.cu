// Y = H D for a batch of tokens, where a row of D belongs to a neuron: the down product of an FFN whose
// weights are split by neurons.
//
// A tile is 32 tokens by 64 columns. Half of a block's 256 threads lay 32 rows of D at a time, their 64 columns as
// floats, and the tokens' values of H into shared memory, while the others multiply the 32 rows before them: a thread
// adds to four tokens by four columns, and reads a row while it adds the one before it. So nobody waits for memory who
// has something to multiply, and the registers of a row that is decoded are not taken from sums.
//
// The sum over a token's rows has the order that sparse_rows.h gives it for a token alone: as many groups, of equally
// many of its rows in ascending order, each summed in one float; then the groups in order. Where none of four rows
// begins a group, as most do not, they are added without another look at it.
#include "async_copies.h"
#include "parameters.h"

constexpr int DOWN_SIDE = 64, DOWN_TOKENS = 32;   // columns and tokens of a tile
constexpr int DOWN_ROWS = 32, DOWN_FOUR = 4;      // rows of a step, and of those that are looked at together
constexpr int DOWN_REACH = 4;                     // tokens, and columns, of a thread that multiplies
constexpr int DOWN_THREADS = 128;                 // that multiply: the first; as many lay
constexpr int DOWN_UNITS = DOWN_SIDE / 8;         // of eight weights, in a row of a tile
constexpr int HIDDEN_STRIDE = DOWN_TOKENS + 4;    // of H, from row to row: eight begin in eight times four banks
constexpr int NO_ROW = 0x7fffffff;

// Where the groups of one token begin: ids has its rows, all of them if there is no list. Two beginnings are known
// ahead, so that nobody waits for the list.
struct Groups {
    const int* ids;
    int n_active, size, row, following, at;       // first rows of the next one and of the one behind it; its place

    __device__ bool is_there() const { return at < n_active && size > 0; }
    __device__ int first_row() const { return is_there() ? ids ? ids[at] : at : NO_ROW; }
    __device__ void set(const int* list, int count, int n_groups) {
        ids = list, n_active = count, size = (count + n_groups - 1) / n_groups;
        at = size, row = first_row();
        at += size, following = first_row();
    }
    // Bits of those of the DOWN_ROWS rows from `first` on that begin a group. What was asked for before is there.
    __device__ unsigned begins(int first) {
        if (row >= first + DOWN_ROWS) return 0;
        unsigned bits = 1u << (row - first);
        row = following, at += size;
        for (; row < first + DOWN_ROWS; at += size) bits |= 1u << (row - first), row = first_row();
        if (is_there() && ids) copy_async<4>(&following, ids + at, true);
        else following = first_row();
        return bits;
    }
};

struct DownStep {
    float rows[DOWN_ROWS][DOWN_SIDE], hidden[DOWN_ROWS][HIDDEN_STRIDE];  // hidden: H, a row for each row of D
    unsigned begins[DOWN_TOKENS];                 // of each token, the rows that begin a group
};
struct DownTile {
    DownStep steps[2];
    Groups groups[DOWN_TOKENS];                   // each is one thread's
    int first_unit, first_token, n_tokens;        // here, since compilers keep all that follows from them in registers
};
__device__ static inline DownTile& down_tile() {
    DYNAMIC_SHARED(DownTile, shared_down_tile);
    return *shared_down_tile;
}

// Rows of D from `first` on, by the thread `own` of those that lay. Rows behind the last are zero; what lies behind a
// row's end is any number, which nobody stores.
template <class Rows>
__device__ inline void lay_rows(const DownTile& tile, DownStep& step, Rows down, unsigned own, int first, int n_rows) {
    constexpr int AT_ONCE = DOWN_ROWS * DOWN_UNITS / DOWN_THREADS, APART = DOWN_ROWS / AT_ONCE;
    int r = (int)(own / DOWN_UNITS), place = (int)(own % DOWN_UNITS);
    int unit = min(tile.first_unit + place, down.n_units() - 1);
    float v[AT_ONCE][8];
    auto read = [&] {
        for (int i = 0; i < AT_ONCE; i++) down.eight(min(first + r + i * APART, n_rows - 1), unit, v[i]);
    };
    if (!Rows::CUT_EIGHTS || 8 * unit + 8 <= down.n) read();  // nothing to look at, so all loads are under way at once
    else read();
    if (first + DOWN_ROWS > n_rows)
        for (int i = 0; i < AT_ONCE; i++)
            for (int k = 0; k < 8; k++) v[i][k] = first + r + i * APART < n_rows ? v[i][k] : 0.f;
    for (int i = 0; i < AT_ONCE; i++)
        for (int k = 0; k < 8; k += 4) {
            float* to = step.rows[r + i * APART] + down.column(place, k);
            *(float4*)to = {v[i][k], v[i][k + 1], v[i][k + 2], v[i][k + 3]};
        }
}
// The tokens' values in those rows. A warp has eight rows of four tokens at a time: 32 banks.
__device__ inline void lay_hidden(const DownTile& tile, DownStep& step, const float* h, unsigned own, int first,
                                  int n_rows) {
    int r = (int)(own / WARP * 8 + own % 8), t = (int)(own / 8 % 4);
    int left = first + r < n_rows ? tile.n_tokens - t : 0;
    const float* from = h + (size_t)(tile.first_token + t) * n_rows + first + r;
    UNROLL(DOWN_TOKENS / 4)
    for (int i = 0; i < DOWN_TOKENS; i += 4)
        copy_async<4>(&step.hidden[r][t + i], from + (size_t)i * n_rows, i < left);
}

// A thread's numbers, of token 4 b + j and column 4 a + k: sums of the group that is under way, and of those before it.
// Two neighbouring lanes have the same columns, and every second one the same tokens: then cards read shared memory for
// a warp at twice the speed.
struct DownSums {
    int a = (int)(threadIdx.x / 2 % 16), b = (int)(threadIdx.x / WARP * 2 + threadIdx.x % 2);
    float group[DOWN_REACH][4] = {}, total[DOWN_REACH][4] = {};

    __device__ void clear() {
        for (int j = 0; j < DOWN_REACH; j++)
            for (int k = 0; k < 4; k++) group[j][k] = total[j][k] = 0.f;
    }
    __device__ void end_group(int j) {
        for (int k = 0; k < 4; k++) total[j][k] += group[j][k], group[j][k] = 0.f;
    }
    __device__ void add(int j, float v, float4 w) {
        group[j][0] = fmaf(v, w.x, group[j][0]), group[j][1] = fmaf(v, w.y, group[j][1]);
        group[j][2] = fmaf(v, w.z, group[j][2]), group[j][3] = fmaf(v, w.w, group[j][3]);
    }
    // Where the thread reads in a row of a step: its columns of D, and its tokens of H.
    struct Place {
        const float *rows, *hidden;
        __device__ void read(int i, float4& w, float4& v) const {
            w = *(const float4*)(rows + i * DOWN_SIDE), v = *(const float4*)(hidden + i * HIDDEN_STRIDE);
        }
    };
    // Four rows from row `first` on, which w and v hold; in the end they hold the one behind the four, n_next rows on.
    // any: bit i if row i begins a group of one of the warp's tokens, so that all of its lanes go the same way.
    template <bool LOOKS>
    __device__ void add_four(const DownStep& step, int first, unsigned any, Place at, int n_next, float4& w,
                             float4& v) {
        uint4 begins = LOOKS ? ((const uint4*)step.begins)[b] : uint4{0, 0, 0, 0};
        const unsigned own[DOWN_REACH] = {begins.x, begins.y, begins.z, begins.w};
        UNROLL(DOWN_FOUR)
        for (int i = 0; i < DOWN_FOUR; i++) {
            float4 next_w, next_v;
            at.read(i < DOWN_FOUR - 1 ? i + 1 : n_next, next_w, next_v);
            if (LOOKS && (any >> i & 1))
                for (int j = 0; j < DOWN_REACH; j++)
                    if (own[j] >> (first + i) & 1) end_group(j);
            add(0, v.x, w), add(1, v.y, w), add(2, v.z, w), add(3, v.w, w);
            w = next_w, v = next_v;
        }
    }
    __device__ void add_step(const DownStep& step) {
        uint4 one = ((const uint4*)step.begins)[b], other = ((const uint4*)step.begins)[b ^ 1];
        unsigned any = one.x | one.y | one.z | one.w | other.x | other.y | other.z | other.w;
        Place at = {&step.rows[0][4 * a], &step.hidden[0][4 * b]};
        float4 w, v;
        at.read(0, w, v);
        UNROLL(2)
        for (int first = 0; first < DOWN_ROWS; first += DOWN_FOUR) {
            int n_next = first < DOWN_ROWS - DOWN_FOUR ? DOWN_FOUR : 0;  // behind the last row none is there
            if (any & 15) add_four<true>(step, first, any, at, n_next, w, v);
            else add_four<false>(step, first, 0, at, n_next, w, v);
            at.rows += DOWN_FOUR * DOWN_SIDE, at.hidden += DOWN_FOUR * HIDDEN_STRIDE, any >>= DOWN_FOUR;
        }
    }
};

// h[n_tokens][n_rows] -> y[n_tokens][n]. ids[n_tokens][n_rows], count[n_tokens]: each token's rows, if has_list; h is
// zero in the others. grid: (tokens / 32, columns / 64).
template <class Rows>
__device__ inline void matmul_transposed(Rows down, const float* h, const int* ids, const int* count, float* y,
                                         int n_rows, int n_tokens, int n_groups, int has_list) {
    DownTile& tile = down_tile();
    bool lays = threadIdx.x >= DOWN_THREADS;
    unsigned own = threadIdx.x % DOWN_THREADS;    // of those that lay, or of those that multiply
    int first_token = (int)blockIdx.x * DOWN_TOKENS;
    if (lays && own < DOWN_TOKENS) {
        int token = min(first_token + (int)own, n_tokens - 1);
        const int* list = has_list ? ids + (size_t)token * n_rows : nullptr;
        tile.groups[own].set(list, has_list ? count[token] : n_rows, n_groups);
        if (own == 0) {
            tile.first_unit = (int)blockIdx.y * DOWN_UNITS;
            tile.first_token = first_token, tile.n_tokens = n_tokens - first_token;
        }
    }
    DownSums sums;
    UNROLL(1)
    for (int row = -DOWN_ROWS; row < n_rows; row += DOWN_ROWS) {
        int next = row + DOWN_ROWS, which = row / DOWN_ROWS & 1;
        wait_for_copies<0>();
        __syncthreads();                          // the step is there, and nobody reads the other one any more
        if (!lays) {
            if (row >= 0) sums.add_step(tile.steps[which]);
        } else if (next < n_rows) {
            DownStep& step = tile.steps[which ^ 1];
            lay_hidden(tile, step, h, own, next, n_rows);
            if (own < DOWN_TOKENS) step.begins[own] = tile.groups[own].begins(next);
            commit_copies();
            lay_rows(tile, step, down, own, next, n_rows);
            sums.clear();                         // of no use here, so that no registers are kept for them
        }
    }
    int column = (int)blockIdx.y * DOWN_SIDE + 4 * sums.a;
    for (int j = 0; j < DOWN_REACH; j++) {
        int token = first_token + 4 * sums.b + j;
        if (lays || token >= n_tokens) break;
        sums.end_group(j);
        for (int k = 0; k < 4; k++)
            if (column + k < down.n) y[(size_t)token * down.n + column + k] = sums.total[j][k];
    }
}

#define MATMUL_TRANSPOSED(T) \
KERNEL_WIDE matmul_transposed_##T(PLANES_##T(down), const float* __restrict__ h, const int* __restrict__ ids, \
                                  const int* __restrict__ count, float* __restrict__ y, int n_rows, int n, \
                                  int n_tokens, int n_groups, int has_list) { \
    matmul_transposed(ROWS_##T(down, n), h, ids, count, y, n_rows, n_tokens, n_groups, has_list); \
}
ONE_TYPE(MATMUL_TRANSPOSED)
