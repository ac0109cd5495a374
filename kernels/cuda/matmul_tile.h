// What a block of threads of a tile has in shared memory, and how it gets there: a step's piece of 64 rows and of 64
// inputs, in units of 16 bytes. A unit is four floats, or sixteen int8 with a scale beside them.
#pragma once
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

// Which inputs a tile has: `n` of them at most, the t-th is number of(t) of all.
struct Following {
    int first, n;
    __device__ int of(int t) const { return first + t; }
};

// has_minima: whether the sums of the sixteens are wanted.
template <bool has_minima, class Inputs>
__device__ inline void lay_inputs(MatmulTile& tile, Quantised x, int n, Inputs inputs, int unit) {
    for (int i = threadIdx.x; i < TILE_SIDE * UNITS; i += blockDim.x) {
        int t = i / UNITS, u = i % UNITS, token = inputs.of(t);
        bool inside = t < inputs.n && unit < n / 16;
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
template <bool has_minima, class Inputs>
__device__ inline void lay_inputs(MatmulTile& tile, Floats x, int n, Inputs inputs, int unit) {
    for (int i = threadIdx.x; i < TILE_SIDE * UNITS / 2; i += blockDim.x) {
        int t = i / (UNITS / 2), u = i % (UNITS / 2), token = inputs.of(t), first = 4 * unit;
        float v[8] = {};
        const float* own = x.of_token(token, n).x;
        if (t < inputs.n && first + 8 <= n && n % 4 == 0) load8(own + first, v);
        else if (t < inputs.n)
            for (int k = 0; k < 8; k++) v[k] = first + k < n ? own[first + k] : 0.f;
        store8(tile.inputs + t * UNIT_STRIDE + 2 * u, v);
    }
}
