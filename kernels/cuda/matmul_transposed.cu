// Y = H D for a batch of tokens, where a row of D belongs to a neuron: the down product of an FFN whose
// weights are split by neurons.
//
// A tile is 64 tokens by 64 columns. A block of 256 threads takes 32 rows of D at a time: it lays their
// 64 columns, as floats, and the tokens' values of H into shared memory; each thread then adds to four
// tokens by four columns. The sum over the rows ascends, in one float a number.
#include "parameters.h"

constexpr int DOWN_SIDE = 64, DOWN_ROWS = 32;     // tokens and columns of a tile; rows of a step
constexpr int DOWN_SPAN = 16, DOWN_REACH = 4;     // a thread's tokens are 16 apart, and four
constexpr int HIDDEN_STRIDE = DOWN_ROWS + 1;      // of a token, so that 16 of them lie in 16 banks

struct DownTile {
    float rows[DOWN_ROWS][DOWN_SIDE], hidden[DOWN_SIDE * HIDDEN_STRIDE];
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

// h[n_tokens][n_rows] -> y[n_tokens][n]. grid: (columns / 64, tokens / 64).
template <class Rows>
__device__ inline void matmul_transposed(Rows down, const float* h, float* y, int n_rows, int n_tokens) {
    DownTile& tile = down_tile();
    int first_column = (int)blockIdx.x * DOWN_SIDE, first_token = (int)blockIdx.y * DOWN_SIDE;
    int a = (int)threadIdx.x % DOWN_SPAN, b = (int)threadIdx.x / DOWN_SPAN;
    int n_spans = (min(n_tokens - first_token, DOWN_SIDE) + DOWN_SPAN - 1) / DOWN_SPAN;
    float sum[DOWN_REACH][4] = {};                // of token b + 16 j and column 4 a + k
    for (int row = 0; row < n_rows; row += DOWN_ROWS) {
        lay_down(tile, down, row, n_rows, first_column / 8);
        lay_hidden(tile, h, first_token, n_tokens, row, n_rows);
        __syncthreads();
        UNROLL(4)
        for (int r = 0; r < DOWN_ROWS; r++) {
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
            if (token < n_tokens && column < down.n) y[(size_t)token * down.n + column] = sum[j][k];
        }
}

#define MATMUL_TRANSPOSED(T) \
KERNEL_WIDE matmul_transposed_##T(PLANES_##T(down), const float* __restrict__ h, float* __restrict__ y, \
                                  int n_rows, int n, int n_tokens) { \
    matmul_transposed(ROWS_##T(down, n), h, y, n_rows, n_tokens); \
}
ONE_TYPE(MATMUL_TRANSPOSED)
