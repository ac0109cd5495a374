// A block's tile of Y = X W^T: who works out which of its numbers, and how, with tensor cores and without. The products
// within a block of weights are integers and exact, and the sums over blocks have one order: the bits are the same.
// Halves have an order of their own with tensor cores, and the floats' without (weights_half.h).
#pragma once
#include "epilogue.h"
#include "halves_tile.h"
#include "tensor_cores.h"

// Number i of j of a thread is of row `row(i)` of the tile and of token `token(j, i)`; `n_some(n)`: how many j have a
// token at all where the tile has n. Here thread (a, b) has rows a + 16 i and tokens b + 16 j.
struct Apart {
    int a = (int)threadIdx.x % SPAN, b = (int)threadIdx.x / SPAN;
    __device__ int row(int i) const { return a + SPAN * i; }
    __device__ int token(int j, int) const { return b + SPAN * j; }
    __device__ int n_some(int n) const { return (min(n, TILE_SIDE) + SPAN - 1) / SPAN; }
};
// As tensor cores have it: a warp has 16 rows and four times eight tokens; lane 4 g + t has rows g and g + 8, and of
// eight tokens 2 t and 2 t + 1.
struct ByWarp {
    int g = lane() / 4, t = lane() % 4, first_row = warp() % 4 * 16, first_token = warp() / 4 * 32;
    __device__ int row(int i) const { return first_row + g + i / 2 * 8; }
    __device__ int token(int j, int i) const { return first_token + 8 * j + 2 * t + i % 2; }
    __device__ int n_some(int n) const { return max(0, min((n - first_token + 7) / 8, REACH)); }
};

// A product of int8 becomes a float by way of the last bits of 1.5 * 2^23, which cards add faster than
// they convert: exact below 2^22, and the 32 of a block stay below 2^19.
constexpr int FLOAT_BITS = 0x4b400000;
__device__ inline float from_bits(int bits) { return __int_as_float(bits) - 12582912.f; }
__device__ inline float from_int(int sum) { return from_bits(sum + FLOAT_BITS); }

// A thread's sixteen numbers, [j][i]: sums of the chain that is under way, and of those before it.
struct Sums {
    float chain[REACH][REACH] = {}, total[REACH][REACH] = {};
    __device__ void end_chain() {
        for (int j = 0; j < REACH; j++)
            for (int i = 0; i < REACH; i++) total[j][i] += chain[j][i], chain[j][i] = 0.f;
    }
};

// Two units, a block of 32, at a time, of two rows: of four they would not fit the registers. One unit, where two
// neighbours are of different blocks.
template <class Rows>
__device__ inline void multiply(const MatmulTile& tile, Rows, Apart at, int n_some, Sums& sums) {
    constexpr int STEP = Rows::QUARTERS ? 1 : 2, SOME = REACH / 2;
    static_assert(Rows::QUARTERS || Rows::MINIMA < 2, "a minimum of each sixteen");
    UNROLL(1)
    for (int u = 0; u < UNITS; u += STEP) {
        for (int first = 0; first < REACH; first += SOME) {
            int4 w[SOME][STEP];
            float scale[SOME][STEP], minimum[SOME];
            for (int i = 0; i < SOME; i++) {
                int row = at.row(first + i);
                for (int k = 0; k < STEP; k++) {
                    w[i][k] = tile.rows[row * UNIT_STRIDE + u + k];
                    scale[i][k] = tile.row_scales[(u + k) * SCALE_STRIDE + row];
                }
                if constexpr (Rows::MINIMA > 0) minimum[i] = tile.row_minima[u * SCALE_STRIDE + row];
            }
            for (int j = 0; j < REACH; j++) {
                if (j >= n_some) break;
                int token = at.token(j, 0);
                int4 x[STEP];
                for (int k = 0; k < STEP; k++) x[k] = tile.inputs[token * UNIT_STRIDE + u + k];
                float d = tile.input_scales[u * SCALE_STRIDE + token], of_all = 0.f;
                if constexpr (Rows::MINIMA > 0) of_all = from_int(tile.input_sums[u * SCALE_STRIDE + token]) * d;
                for (int i = 0; i < SOME; i++) {
                    int product = FLOAT_BITS;
                    float& sum = sums.chain[j][first + i];
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
__device__ inline void multiply(const MatmulTile& tile, Plain<T>, Apart at, int n_some, Sums& sums) {
    const float4 *rows = (const float4*)tile.rows, *inputs = (const float4*)tile.inputs;
    UNROLL(2)
    for (int u = 0; u < UNITS; u++) {
        float4 w[REACH];
        for (int i = 0; i < REACH; i++) w[i] = rows[at.row(i) * UNIT_STRIDE + u];
        for (int j = 0; j < REACH; j++) {
            if (j >= n_some) break;
            float4 x = inputs[at.token(j, 0) * UNIT_STRIDE + u];
            for (int i = 0; i < REACH; i++) {
                float s = fmaf(w[i].y, x.y, fmaf(w[i].x, x.x, sums.chain[j][i]));
                sums.chain[j][i] = fmaf(w[i].w, x.w, fmaf(w[i].z, x.z, s));
            }
        }
        if (u % 2 && tile.is_last[u]) sums.end_chain();
    }
}

// ---- by tensor cores ---------------------------------------------------------------------------

#ifdef TENSOR_CORES
// Word t of a unit: four of its sixteen numbers.
__device__ inline unsigned word_of(const int4* units, int at, int t) { return ((const unsigned*)(units + at))[t]; }

// Products of two units of 16 rows by eight tokens: of both together, or of each where their scales differ.
template <bool apart>
__device__ inline void products(int (&product)[2][4], const unsigned (&w)[2][2], const unsigned (&x)[2]) {
    if constexpr (apart)
        for (int k = 0; k < 2; k++) mma_s8(product[k], w[k], {x[k]});
    else mma_s8(product[1], {w[0][0], w[0][1], w[1][0], w[1][1]}, x);
}
// Of a unit alone.
template <bool> __device__ inline void products(int (&product)[1][4], const unsigned (&w)[1][2], const unsigned (&x)[1]) {
    mma_s8(product[0], w[0], x);
}

template <class Rows>
__device__ inline void multiply(const MatmulTile& tile, Rows, ByWarp at, int n_some, Sums& sums) {
    constexpr int STEP = Rows::QUARTERS ? 1 : 2, PASSES = Rows::QUARTERS ? UNITS : 1;  // else they spill on sm_120
    static_assert(Rows::QUARTERS || Rows::MINIMA < 2, "a minimum of each sixteen");
    UNROLL(PASSES)
    for (int u = 0; u < UNITS; u += STEP) {
        unsigned w[STEP][2];
        float scale[STEP][2], minimum[2];
        for (int h = 0; h < 2; h++) {
            int row = at.row(2 * h);
            for (int k = 0; k < STEP; k++) {
                w[k][h] = word_of(tile.rows, row * UNIT_STRIDE + u + k, at.t);
                scale[k][h] = tile.row_scales[(u + k) * SCALE_STRIDE + row];
            }
            if constexpr (Rows::MINIMA > 0) minimum[h] = tile.row_minima[u * SCALE_STRIDE + row];
        }
        for (int j = 0; j < REACH; j++) {
            if (j >= n_some) break;
            unsigned x[STEP];
            int product[STEP][4], column = at.first_token + 8 * j + at.g;
            for (int k = 0; k < STEP; k++) {
                x[k] = word_of(tile.inputs, column * UNIT_STRIDE + u + k, at.t);
                for (int i = 0; i < 4; i++) product[k][i] = FLOAT_BITS;
            }
            products<Rows::HALF_SCALES>(product, w, x);
            for (int i = 0; i < 4; i++) {
                int token = at.token(j, i), h = i / 2;
                float d = tile.input_scales[u * SCALE_STRIDE + token], &sum = sums.chain[j][i];
                for (int k = Rows::HALF_SCALES ? 0 : STEP - 1; k < STEP; k++)
                    sum = fmaf(scale[k][h] * d, from_bits(product[k][i]), sum);
                if constexpr (Rows::MINIMA > 0)
                    sum = fmaf(-minimum[h], from_int(tile.input_sums[u * SCALE_STRIDE + token]) * d, sum);
            }
        }
        if (tile.is_last[u + STEP - 1]) sums.end_chain();
    }
}
// Halves: the same tile of a warp, but lane 4 g + t has token g of eight, and rows 2 t and 2 t + 1.
struct HalvesByWarp : ByWarp {
    __device__ HalvesByWarp() {                   // the same, by divisions without a sign
        first_row = (int)(threadIdx.x / WARP % 4 * 16), first_token = (int)(threadIdx.x / (4 * WARP) * 32);
    }
    __device__ int row(int i) const { return first_row + i / 2 * 8 + 2 * t + i % 2; }
    __device__ int token(int j, int) const { return first_token + 8 * j + g; }
};
template <class T>
__device__ inline void multiply(const HalvesTile<T>& tile, HalvesByWarp at, int n_some, Sums& sums) {
    int4 w[2];
    for (int i = 0; i < 2; i++) w[i] = tile.rows[(at.first_row + 8 * i) * UNITS + lane()];
    float of_thirds[2][4];
    for (int j = 0; j < REACH; j++) {
        if (j >= n_some) break;
        int first = (at.first_token + 8 * j) * UNITS + lane();
        uint4 x[2];
        if (Split<T>::TERMS == 3 && j % 2 == 0) {
            for (int k = 0; k < 2; k++) x[k] = tile.inputs[2][first + 8 * k * UNITS];
            for (int i = 0; i < 2; i++) {
                for (int k = 0; k < 4; k++) of_thirds[i][k] = 0.f;
                add_products<T>(of_thirds[i], x, w[i]);
            }
        }
        for (int k = 0; k < 2; k++) x[k] = tile.inputs[k][first];
        float scale = Split<T>::HAS_SCALE ? tile.scales[at.token(j, 0)] : 1.f;
        for (int i = 0; i < 2; i++) {
            float products[4] = {};
            add_products<T>(products, x, w[i]);
            for (int k = 0; k < 2; k++) {
                float& sum = sums.chain[j][2 * i + k];
                if constexpr (Split<T>::TERMS == 3) products[2 + k] += of_thirds[i][j % 2 * 2 + k];
                sum = fmaf(scale, products[k] + products[2 + k], sum);
            }
        }
    }
}
template <class T> __device__ inline HalvesByWarp places(Halves<T>) { return {}; }
template <class Rows> __device__ inline ByWarp places(Rows) { return {}; }
#else
template <class Rows> __device__ inline Apart places(Rows) { return {}; }
#endif
template <class T> __device__ inline Apart places(Plain<T>) { return {}; }

// Adds up rows first_row to last_row - 1, 64 at most, times inputs of a tile.
template <class Rows, class Input, class Inputs, class Places>
__device__ inline void add_up(Rows rows, int first_row, int last_row, Input x, Inputs inputs, Places at, Sums& sums) {
    int n_some = at.n_some(inputs.n), n_units = rows.pieces().n * Rows::piece_units();
    Step<Rows> step;
    auto begin = [&](int which, int first) {
        MatmulTile& next = matmul_tile<Rows>(which);
        step.begin(next, rows, first_row, last_row, x, inputs, unit_in_order(next, rows, first));
    };
    begin(0, 0);
    step.put(matmul_tile<Rows>(0));
    UNROLL(1)
    for (int first = 0; first < n_units; first += UNITS) {
        int which = first / UNITS % 2;
        bool goes_on = first + UNITS < n_units;
        wait_for_copies<0>();
        __syncthreads();                          // the tile is there, and nobody reads the other one any more
        if (goes_on) begin(which ^ 1, first + UNITS);
        if (goes_on && !Rows::WAITS_DECODED) step.put(matmul_tile<Rows>(which ^ 1));
        multiply(matmul_tile<Rows>(which), rows, at, n_some, sums);
        if (goes_on && Rows::WAITS_DECODED) step.put(matmul_tile<Rows>(which ^ 1));
    }
}
#ifdef TENSOR_CORES
template <class T, class Inputs>
__device__ inline void add_up(Halves<T> rows, int first_row, int last_row, Floats x, Inputs inputs, HalvesByWarp at,
                              Sums& sums) {
    auto begin = [&](int which, int piece) {
        begin_step(halves_tile<T>(which), rows, first_row, last_row, x, inputs, piece);
    };
    begin(0, 0);
    UNROLL(1)
    for (int piece = 0, which = 0; piece < rows.n_pieces(); which ^= 1) {
        int next = rows.piece_behind(piece);
        split_inputs(halves_tile<T>(which));
        __syncthreads();                          // the halves are there, and nobody reads the other tile any more
        if (next < rows.n_pieces()) begin(which ^ 1, next);
        multiply(halves_tile<T>(which), at, at.n_some(inputs.n), sums);
        if (rows.ends_chain(piece)) sums.end_chain();
        piece = next;
    }
}
#endif

// The products of such rows and inputs: store(row, t, number) gets each number.
template <class Rows, class Input, class Inputs, class Places, class Store>
__device__ inline void multiply_tile(Rows rows, int first_row, int last_row, Input x, Inputs inputs, Places at,
                                     Store store) {
    Sums sums;
    add_up(rows, first_row, last_row, x, inputs, at, sums);
    UNROLL(REACH)                                 // else sm_120's sums lie on the stack
    for (int j = 0; j < REACH; j++)
        UNROLL(REACH)
        for (int i = 0; i < REACH; i++) {
            int row = first_row + at.row(i), t = at.token(j, i);
            if (row < last_row && t < inputs.n) store(row, t, sums.total[j][i]);
        }
}

// grid: (rows / 64, tokens / 64).
template <class Rows, class Input, class Places>
__device__ inline void matmul(Rows rows, Input x, Epilogue out, int n_tokens, Places at) {
    int first_row = (int)blockIdx.x * TILE_SIDE, first_token = (int)blockIdx.y * TILE_SIDE;
    multiply_tile(rows, first_row, out.n_rows, x, Following{first_token, n_tokens - first_token}, at,
                  [&](int row, int t, float v) { out.store(first_token + t, row, v); });
}
