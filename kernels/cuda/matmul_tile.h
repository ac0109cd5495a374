// What a block of threads of a tile has in shared memory, and how it gets there: a step's piece of 64 rows and of 64
// inputs, in units of 16 bytes. A unit is four floats, or sixteen int8 with a scale beside them.
//
// There are two such tiles. While one is multiplied the next step comes into the other: inputs by asynchronous copies,
// and rows, which have to be decoded on their way, by registers.
#pragma once
#include "async_copies.h"
#include "parameters.h"

constexpr int TILE_SIDE = 64;                     // rows and tokens of a tile
constexpr int UNITS = 4;                          // of a row or an input in one step
constexpr int UNIT_STRIDE = UNITS + 1;            // from row to row: eight rows begin in eight times four banks
constexpr int SCALE_STRIDE = TILE_SIDE + 4;       // likewise, of one unit's scales
constexpr int SPAN = 16;                          // a thread's rows, and tokens, are that far apart
constexpr int REACH = TILE_SIDE / SPAN;           // and so many

struct MatmulTile {
    int4 rows[TILE_SIDE * UNIT_STRIDE], inputs[TILE_SIDE * UNIT_STRIDE];
    int is_last[UNITS];                           // whether a chain ends behind the unit; of floats, each second
    float row_scales[UNITS * SCALE_STRIDE], input_scales[UNITS * SCALE_STRIDE];  // of each sixteen
    float row_minima[UNITS * SCALE_STRIDE];       // of each sixteen, for types with minima
    int input_sums[UNITS * SCALE_STRIDE];         // likewise: of 32 in each second unit, or of each sixteen
};
constexpr int MINIMA_BYTES = 2 * UNITS * SCALE_STRIDE * 4;
__device__ static inline char* tile_memory() {
    DYNAMIC_SHARED(int4, shared_matmul_tiles);
    return (char*)shared_matmul_tiles;
}
// Tile 0 or 1.
template <class Rows> __device__ inline MatmulTile& matmul_tile(int which) {
    constexpr int BYTES = (int)sizeof(MatmulTile) - (Rows::MINIMA > 0 ? 0 : MINIMA_BYTES);
    return *(MatmulTile*)(tile_memory() + which * BYTES);
}

// ---- laying a step into a tile; what lies outside the matrices is zero -------------------------
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

// Which inputs a tile has: `n` of them at most, the t-th is number of(t) of all.
struct Following {
    int first, n;
    __device__ int of(int t) const { return first + t; }
};

// What a thread lays in a step: a unit of a row, which it holds in registers until `put`, and one of an input. `unit`
// counts from the row's begin; rows up to last_row - 1 are there.
template <class Rows> struct Step {
    int4 numbers;
    float scale, minimum;
    int sum;                                      // of the input's sixteen, where each has a minimum

    __device__ static int line() { return (int)threadIdx.x / UNITS; }
    __device__ static int place() { return (int)threadIdx.x % UNITS * SCALE_STRIDE + line(); }
    __device__ static int of_unit() { return line() * UNIT_STRIDE + (int)threadIdx.x % UNITS; }

    template <class Inputs>
    __device__ void begin(MatmulTile& tile, Rows rows, int first_row, int last_row, Quantised x, Inputs inputs, int unit) {
        int row = first_row + line(), t = line(), token = inputs.of(t);
        bool in_row = unit < rows.n / 16, is_there = in_row && t < inputs.n;
        Quantised own = is_there ? x.of_token(token, rows.n) : x;
        int own_unit = is_there ? unit : 0;
        copy_async<16>(tile.inputs + of_unit(), own.q + own_unit, is_there);
        copy_async<4>(tile.input_scales + place(), own.d + own_unit / 2, is_there);
        if (Rows::MINIMA == 1 && threadIdx.x % 2 == 0)
            copy_async<4>(tile.input_sums + place(), own.sum + own_unit / 2, is_there);
        commit_copies();
        if constexpr (Rows::MINIMA == 2) sum = is_there ? sum16(own.q[own_unit]) : 0;
        numbers = {0, 0, 0, 0}, scale = minimum = 0.f;
        if (!in_row || row >= last_row) return;
        numbers = rows.sixteen(row, unit), scale = rows.scale(row, unit);
        if constexpr (Rows::MINIMA > 0) minimum = rows.minimum(row, unit);
    }
    __device__ void put(MatmulTile& tile) const {
        tile.rows[of_unit()] = numbers;
        tile.row_scales[place()] = scale;
        if constexpr (Rows::MINIMA > 0) tile.row_minima[place()] = minimum;
        if constexpr (Rows::MINIMA == 2) tile.input_sums[place()] = sum;
    }
};

// Four numbers of an input that has n, zeros behind its end.
__device__ inline void copy_four(int4* to, Floats all, Floats own, int unit, int n, bool is_aligned) {
    int first = 4 * unit;
    if (is_aligned) copy_async<16>(to, first < n ? own.x + first : all.x, first < n);
    else
        for (int k = 0; k < 4; k++)
            copy_async<4>((float*)to + k, first + k < n ? own.x + first + k : all.x, first + k < n);
}
// Two units at once: eight numbers.
__device__ inline void store8(int4* unit, const float* v) {
    ((float4*)unit)[0] = {v[0], v[1], v[2], v[3]};
    ((float4*)unit)[1] = {v[4], v[5], v[6], v[7]};
}
// Eight numbers, two units, at once: half of the threads have those of rows, and half those of inputs.
template <class T> struct Step<Plain<T>> {
    static constexpr int THREADS = TILE_SIDE * UNITS / 2;
    float v[8];

    __device__ static bool has_row() { return threadIdx.x < THREADS; }
    __device__ static int line() { return (int)threadIdx.x % THREADS / (UNITS / 2); }
    __device__ static int of_unit() { return line() * UNIT_STRIDE + (int)threadIdx.x % (UNITS / 2) * 2; }

    template <class Inputs>
    __device__ void begin(MatmulTile& tile, Plain<T> rows, int first_row, int last_row, Floats x, Inputs inputs, int unit) {
        if (has_row()) {
            for (int k = 0; k < 8; k++) v[k] = 0.f;
            int row = first_row + line();
            if (row < last_row && unit / 2 < rows.n_units()) rows.eight(row, unit / 2, v);
        } else {
            Floats own = x.of_token(inputs.of(line()), rows.n);
            int n = line() < inputs.n ? rows.n : 0;
            for (int k = 0; k < 2; k++) copy_four(tile.inputs + of_unit() + k, x, own, unit + k, n, rows.n % 4 == 0);
        }
        commit_copies();
    }
    __device__ void put(MatmulTile& tile) const {
        if (has_row()) store8(tile.rows + of_unit(), v);
    }
};
