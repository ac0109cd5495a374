// Y = H D for a batch of tokens, where a row of D belongs to a neuron: the down product of an FFN whose
// weights are split by neurons.
//
// A tile is 64 tokens by 64 columns. A block of 256 threads takes 32 rows of D at a time: it lays their
// 64 columns, as floats, and the tokens' values of H into shared memory; each thread then adds to four
// tokens by four columns. The sum over a token's rows has the order that sparse_rows.h gives it for a token alone: as
// many groups, of equally many of its rows in ascending order, each summed in one float; then the groups in order.
#include "parameters.h"

constexpr int DOWN_SIDE = 64, DOWN_ROWS = 32;     // tokens and columns of a tile; rows of a step
constexpr int DOWN_SPAN = 16, DOWN_REACH = 4;     // a thread's tokens are 16 apart, and four
constexpr int HIDDEN_STRIDE = DOWN_ROWS + 1;      // of a token, so that 16 of them lie in 16 banks

struct DownTile {
    float rows[DOWN_ROWS][DOWN_SIDE], hidden[DOWN_SIDE * HIDDEN_STRIDE];
    unsigned begins[DOWN_SIDE];                   // of each token, the step's rows that begin a group
};
__device__ static inline DownTile& down_tile() {
    DYNAMIC_SHARED(DownTile, shared_down_tile);
    return *shared_down_tile;
}

// Columns first_unit * 8 on of rows first_row on; what lies outside the matrix is zero.
template <class Rows>
__device__ inline void lay_down(DownTile& tile, Rows down, int first_row, int n_rows, int first_unit) {
    for (int i = threadIdx.x; i < DOWN_ROWS * DOWN_SIDE / 8; i += blockDim.x) {
        int r = i / (DOWN_SIDE / 8), unit = first_unit + i % (DOWN_SIDE / 8);
        float v[8] = {};
        if (first_row + r < n_rows && unit < down.n_units()) down.eight(first_row + r, unit, v);
        for (int k = 0; k < 8; k++) tile.rows[r][down.column(unit, k) - 8 * first_unit] = v[k];
    }
}
__device__ inline void lay_hidden(DownTile& tile, const float* h, int first_token, int n_tokens,
                                  int first_row, int n_rows) {
    for (int i = threadIdx.x; i < DOWN_SIDE * DOWN_ROWS; i += blockDim.x) {
        int t = i / DOWN_ROWS, r = i % DOWN_ROWS, token = first_token + t, row = first_row + r;
        bool inside = token < n_tokens && row < n_rows;
        tile.hidden[t * HIDDEN_STRIDE + r] = inside ? h[(size_t)token * n_rows + row] : 0.f;
    }
}

// Where the groups of one token begin: ids has its rows, all of them if there is no list.
struct Groups {
    const int* ids;
    int n_active, size, at, row;                  // the next one's first row, and its place among the token's
    __device__ Groups(const int* list, int count, int n_groups)
        : ids(list), n_active(count), size((count + n_groups - 1) / n_groups), at(0) { go_on(); }
    __device__ void go_on() {
        at += size;
        row = at < n_active && size > 0 ? (ids ? ids[at] : at) : 0x7fffffff;
    }
    // Bits of those of the DOWN_ROWS rows from `first` on that begin a group.
    __device__ unsigned begins(int first) {
        unsigned bits = 0;
        for (; row < first + DOWN_ROWS; go_on()) bits |= 1u << (row - first);
        return bits;
    }
};

// h[n_tokens][n_rows] -> y[n_tokens][n]. ids[n_tokens][n_rows], count[n_tokens]: each token's rows, if has_list; h is
// zero in the others. grid: (columns / 64, tokens / 64).
template <class Rows>
__device__ inline void matmul_transposed(Rows down, const float* h, const int* ids, const int* count, float* y,
                                         int n_rows, int n_tokens, int n_groups, int has_list) {
    DownTile& tile = down_tile();
    int first_column = (int)blockIdx.x * DOWN_SIDE, first_token = (int)blockIdx.y * DOWN_SIDE;
    int a = (int)threadIdx.x % DOWN_SPAN, b = (int)threadIdx.x / DOWN_SPAN;
    int n_spans = (min(n_tokens - first_token, DOWN_SIDE) + DOWN_SPAN - 1) / DOWN_SPAN;
    int own = first_token + (int)threadIdx.x % DOWN_SIDE, owned = min(own, n_tokens - 1);
    Groups groups(has_list ? ids + (size_t)owned * n_rows : nullptr, has_list ? count[owned] : n_rows, n_groups);
    float sum[DOWN_REACH][4] = {}, total[DOWN_REACH][4] = {};  // of token b + 16 j and column 4 a + k
    for (int row = 0; row < n_rows; row += DOWN_ROWS) {
        lay_down(tile, down, row, n_rows, first_column / 8);
        lay_hidden(tile, h, first_token, n_tokens, row, n_rows);
        if (threadIdx.x < DOWN_SIDE) tile.begins[threadIdx.x] = groups.begins(row);
        __syncthreads();
        unsigned begins[DOWN_REACH], of_any = 0;
        for (int j = 0; j < DOWN_REACH; j++) of_any |= begins[j] = tile.begins[b + DOWN_SPAN * j];
        UNROLL(4)
        for (int r = 0; r < DOWN_ROWS; r++) {
            if (of_any >> r & 1)
                for (int j = 0; j < DOWN_REACH; j++)
                    if (begins[j] >> r & 1)
                        for (int k = 0; k < 4; k++) total[j][k] += sum[j][k], sum[j][k] = 0.f;
            float4 w = *(const float4*)&tile.rows[r][4 * a];
            for (int j = 0; j < DOWN_REACH; j++) {
                if (j >= n_spans) break;
                float v = tile.hidden[(b + DOWN_SPAN * j) * HIDDEN_STRIDE + r];
                sum[j][0] = fmaf(v, w.x, sum[j][0]), sum[j][1] = fmaf(v, w.y, sum[j][1]);
                sum[j][2] = fmaf(v, w.z, sum[j][2]), sum[j][3] = fmaf(v, w.w, sum[j][3]);
            }
        }
        __syncthreads();                          // the tile is about to be written again
    }
    for (int j = 0; j < DOWN_REACH; j++)
        for (int k = 0; k < 4; k++) {
            int token = first_token + b + DOWN_SPAN * j, column = first_column + 4 * a + k;
            if (token < n_tokens && column < down.n) y[(size_t)token * down.n + column] = total[j][k] + sum[j][k];
        }
}

#define MATMUL_TRANSPOSED(T) \
KERNEL_WIDE matmul_transposed_##T(PLANES_##T(down), const float* __restrict__ h, const int* __restrict__ ids, \
                                  const int* __restrict__ count, float* __restrict__ y, int n_rows, int n, \
                                  int n_tokens, int n_groups, int has_list) { \
    matmul_transposed(ROWS_##T(down, n), h, ids, count, y, n_rows, n_tokens, n_groups, has_list); \
}
ONE_TYPE(MATMUL_TRANSPOSED)
