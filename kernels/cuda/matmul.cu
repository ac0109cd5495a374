// Y = X W^T for a batch of tokens, in tiles of 64 rows by 64 tokens.
//
// A block of 256 threads walks along the rows in steps: it lays a piece of 64 rows and of 64 inputs into
// shared memory, in units of 16 bytes, and each thread multiplies four rows by four tokens. A unit is
// four floats, or sixteen int8 with a scale beside them. A row's pieces are taken chain after chain, each chain is
// summed in one float and then added to those before it: the bits of a row alone (weights.h).
#include "epilogue.h"
#include "parameters.h"

constexpr int TILE_SIDE = 64;                     // rows and tokens of a tile
constexpr int UNITS = 8;                          // of a row or an input in one step
constexpr int UNIT_STRIDE = UNITS + 1;            // from row to row: eight rows begin in eight banks
constexpr int SCALE_STRIDE = TILE_SIDE + 4;       // likewise, of one unit's scales
constexpr int SPAN = 16;                          // a thread's rows, and tokens, are that far apart
constexpr int REACH = TILE_SIDE / SPAN;           // and so many

struct MatmulTile {
    int4 rows[TILE_SIDE * UNIT_STRIDE], inputs[TILE_SIDE * UNIT_STRIDE];
    int is_last[UNITS];                           // whether a chain ends behind the unit; of floats, each second
    float row_scales[UNITS * SCALE_STRIDE], input_scales[UNITS * SCALE_STRIDE];  // of each sixteen
    float row_minima[UNITS * SCALE_STRIDE], input_sums[UNITS * SCALE_STRIDE];  // of each sixteen, for types with minima
};
__device__ static inline MatmulTile& matmul_tile() {
    DYNAMIC_SHARED(MatmulTile, shared_matmul_tile);
    return *shared_matmul_tile;
}

// ---- laying a step into shared memory; what lies outside the matrices is zero ------------------
// A thread always lays the same unit of a step, so it works out once which unit of the rows that is.

// Where in a row the thread's unit of a step lies whose first one comes after `first` others; past the end where
// none is left.
template <class Rows> __device__ inline int unit_in_order(MatmulTile& tile, Rows rows, int first) {
    constexpr int PIECE = Rows::piece_units(), LAID = Rows::LAID_UNITS, THREADS = UNITS / LAID;
    int u = (int)threadIdx.x % THREADS * LAID, i = (first + u) / PIECE, k = (first + u) % PIECE;
    bool is_last = false, is_there = i < rows.pieces().n;
    int piece = is_there ? rows.pieces().at(i, is_last) : i;
    if (threadIdx.x < THREADS) tile.is_last[u + LAID - 1] = is_last && k + LAID == PIECE;
    return rows.unit_of(piece, k);
}

// Row `r` of the tile is row `row` of the weight; `unit` counts from the row's begin.
template <class Rows>
__device__ inline void lay_rows(MatmulTile& tile, Rows rows, int first_row, int n_rows, int unit) {
    for (int i = threadIdx.x; i < TILE_SIDE * UNITS; i += blockDim.x) {
        int r = i / UNITS, u = i % UNITS, row = first_row + r;
        bool inside = row < n_rows && unit < rows.n / 16;
        int4 numbers{0, 0, 0, 0};                 // a variable: the race build sees no store within a function's return
        if (inside) numbers = rows.sixteen(row, unit);
        tile.rows[r * UNIT_STRIDE + u] = numbers;
        tile.row_scales[u * SCALE_STRIDE + r] = inside ? rows.scale(row, unit) : 0.f;
        if constexpr (Rows::MINIMA > 0) tile.row_minima[u * SCALE_STRIDE + r] = inside ? rows.minimum(row, unit) : 0.f;
    }
}
// has_minima: whether the sums of the sixteens are wanted.
template <bool has_minima>
__device__ inline void lay_inputs(MatmulTile& tile, Quantised x, int n, int first_token, int n_tokens, int unit) {
    for (int i = threadIdx.x; i < TILE_SIDE * UNITS; i += blockDim.x) {
        int t = i / UNITS, u = i % UNITS, token = first_token + t;
        bool inside = token < n_tokens && unit < n / 16;
        int4 q = inside ? x.q[(size_t)token * (n / 16) + unit] : int4{0, 0, 0, 0};
        tile.inputs[t * UNIT_STRIDE + u] = q;
        tile.input_scales[u * SCALE_STRIDE + t] = inside ? x.of_token(token, n).d[unit / 2] : 0.f;
        if (has_minima) tile.input_sums[u * SCALE_STRIDE + t] = (float)sum16(q);
    }
}

// Two units at once: eight numbers.
__device__ inline void store8(int4* unit, const float* v) {
    ((float4*)unit)[0] = {v[0], v[1], v[2], v[3]};
    ((float4*)unit)[1] = {v[4], v[5], v[6], v[7]};
}
template <class T>
__device__ inline void lay_rows(MatmulTile& tile, Plain<T> rows, int first_row, int n_rows, int unit) {
    for (int i = threadIdx.x; i < TILE_SIDE * UNITS / 2; i += blockDim.x) {
        int r = i / (UNITS / 2), u = i % (UNITS / 2), row = first_row + r;
        float v[8] = {};
        if (row < n_rows && unit / 2 < rows.n_units()) rows.eight(row, unit / 2, v);
        store8(tile.rows + r * UNIT_STRIDE + 2 * u, v);
    }
}
template <bool has_minima>
__device__ inline void lay_inputs(MatmulTile& tile, Floats x, int n, int first_token, int n_tokens, int unit) {
    for (int i = threadIdx.x; i < TILE_SIDE * UNITS / 2; i += blockDim.x) {
        int t = i / (UNITS / 2), u = i % (UNITS / 2), token = first_token + t, first = 4 * unit;
        float v[8] = {};
        const float* own = x.of_token(token, n).x;
        if (token < n_tokens && first + 8 <= n && n % 4 == 0) load8(own + first, v);
        else if (token < n_tokens)
            for (int k = 0; k < 8; k++) v[k] = first + k < n ? own[first + k] : 0.f;
        store8(tile.inputs + t * UNIT_STRIDE + 2 * u, v);
    }
}

// ---- multiplying what lies there: thread (a, b) does rows a + 16 i and tokens b + 16 j ---------

// A product of int8 becomes a float by way of the last bits of 1.5 * 2^23, which cards add faster than
// they convert: exact below 2^22, and the 32 of a block stay below 2^19.
constexpr int FLOAT_BITS = 0x4b400000;
__device__ inline float from_bits(int bits) { return __int_as_float(bits) - 12582912.f; }

// Sums of the chain that is under way, and of those before it.
struct Sums {
    float chain[REACH][REACH] = {}, total[REACH][REACH] = {};
    __device__ void end_chain() {
        for (int i = 0; i < REACH; i++)
            for (int j = 0; j < REACH; j++) total[i][j] += chain[i][j], chain[i][j] = 0.f;
    }
};

// Two units, a block of 32, at a time, of two rows: of four they would not fit the registers. One unit, where two
// neighbours are of different blocks. n_spans: how many j have a token at all.
template <class Rows>
__device__ inline void multiply(const MatmulTile& tile, Rows, int a, int b, int n_spans, Sums& sums) {
    constexpr int STEP = Rows::QUARTERS ? 1 : 2, SOME = REACH / STEP;
    static_assert(Rows::QUARTERS || Rows::MINIMA < 2, "a minimum of each sixteen");
    UNROLL(1)
    for (int u = 0; u < UNITS; u += STEP) {
        for (int first = 0; first < REACH; first += SOME) {
            int4 w[SOME][STEP];
            float scale[SOME][STEP], minimum[SOME];
            for (int i = 0; i < SOME; i++) {
                int row = a + SPAN * (first + i);
                for (int k = 0; k < STEP; k++) {
                    w[i][k] = tile.rows[row * UNIT_STRIDE + u + k];
                    scale[i][k] = tile.row_scales[(u + k) * SCALE_STRIDE + row];
                }
                if constexpr (Rows::MINIMA > 0) minimum[i] = tile.row_minima[u * SCALE_STRIDE + row];
            }
            for (int j = 0; j < REACH; j++) {
                if (j >= n_spans) break;
                int token = b + SPAN * j;
                int4 x[STEP];
                for (int k = 0; k < STEP; k++) x[k] = tile.inputs[token * UNIT_STRIDE + u + k];
                float d = tile.input_scales[u * SCALE_STRIDE + token], of_all = 0.f;
                if constexpr (Rows::MINIMA > 0) {
                    for (int k = 0; k < STEP; k++) of_all += tile.input_sums[(u + k) * SCALE_STRIDE + token];
                    of_all *= d;
                }
                for (int i = 0; i < SOME; i++) {
                    int product = FLOAT_BITS;
                    float& sum = sums.chain[first + i][j];
                    for (int k = 0; k < STEP; k++) {
                        product = dot16(w[i][k], x[k], product);
                        if (k < STEP - 1 && !Rows::HALF_SCALES) continue;
                        sum = fmaf(scale[i][k] * d, from_bits(product), sum);
                        product = FLOAT_BITS;
                    }
                    if constexpr (Rows::MINIMA > 0) sum = fmaf(-minimum[i], of_all, sum);
                }
            }
        }
        if (tile.is_last[u + STEP - 1]) sums.end_chain();
    }
}
template <class T>
__device__ inline void multiply(const MatmulTile& tile, Plain<T>, int a, int b, int n_spans, Sums& sums) {
    const float4 *rows = (const float4*)tile.rows, *inputs = (const float4*)tile.inputs;
    UNROLL(2)
    for (int u = 0; u < UNITS; u++) {
        float4 w[REACH];
        for (int i = 0; i < REACH; i++) w[i] = rows[(a + SPAN * i) * UNIT_STRIDE + u];
        for (int j = 0; j < REACH; j++) {
            if (j >= n_spans) break;
            float4 x = inputs[(b + SPAN * j) * UNIT_STRIDE + u];
            for (int i = 0; i < REACH; i++) {
                float s = fmaf(w[i].y, x.y, fmaf(w[i].x, x.x, sums.chain[i][j]));
                sums.chain[i][j] = fmaf(w[i].w, x.w, fmaf(w[i].z, x.z, s));
            }
        }
        if (u % 2 && tile.is_last[u]) sums.end_chain();
    }
}

// grid: (rows / 64, tokens / 64).
template <class Rows, class Input>
__device__ inline void matmul(Rows rows, Input x, Epilogue out, int n_tokens) {
    MatmulTile& tile = matmul_tile();
    int first_row = (int)blockIdx.x * TILE_SIDE, first_token = (int)blockIdx.y * TILE_SIDE;
    int a = (int)threadIdx.x % SPAN, b = (int)threadIdx.x / SPAN;
    int n_spans = (min(n_tokens - first_token, TILE_SIDE) + SPAN - 1) / SPAN;
    Sums sums;
    for (int first = 0; first < rows.pieces().n * Rows::piece_units(); first += UNITS) {
        int unit = unit_in_order(tile, rows, first);
        lay_rows(tile, rows, first_row, out.n_rows, unit);
        lay_inputs<(Rows::MINIMA > 0)>(tile, x, rows.n, first_token, n_tokens, unit);
        __syncthreads();
        multiply(tile, rows, a, b, n_spans, sums);
        __syncthreads();                          // the tile is about to be written again
    }
    for (int j = 0; j < REACH; j++)
        for (int i = 0; i < REACH; i++) {
            int row = first_row + a + SPAN * i, token = first_token + b + SPAN * j;
            if (row < out.n_rows && token < n_tokens) out.store(token, row, sums.total[i][j]);
        }
}

#define MATMUL(T) \
KERNEL_WIDE matmul_##T(PLANES_##T(w), INPUT_##T, const float* __restrict__ bias, const float* residual, \
                       float* y, int n_rows, int n, int flags, int n_tokens) { \
    matmul(ROWS_##T(w, n), X_##T, Epilogue{bias, residual, y, n_rows, flags}, n_tokens); \
}
ONE_TYPE(MATMUL)
