// Small tiles (matmul_few.h) of rows that are no int8: what a lane multiplies it loads itself.
//
// Without tensor cores a warp has one of 32 chains at a time. Halves have eight chains (weights_half.h), one a warp,
// and their pieces are what lanes give to an mma as they lie in memory.
#pragma once
#include "matmul_few.h"

template <template <class, class> class Products, class T, class Inputs, class Store>
__device__ inline void multiply_few(Plain<T> rows, int first_row, int last_row, Floats x, Inputs inputs, Store store) {
    int n_some = min((inputs.n + 7) / 8, EIGHTS);
    float total = 0.f;
    UNROLL(1)
    for (int pass = 0; pass < WARP; pass += 8) {
        float sums[1][EIGHTS][4] = {};
        UNROLL(1)
        for (int piece = pass + warp(); piece < rows.n_units(); piece += WARP) {
            float w[2][8], u[8];
            for (int h = 0; h < 2; h++) rows.eight(min(first_row + few_row(lane(), 2 * h), last_row - 1), piece, w[h]);
            for (int j = 0; j < EIGHTS; j++) {
                if (j > 0 && j >= n_some) break;
                for (int i = 0; i < 2; i++) {
                    int token = min(8 * j + few_token(lane(), i), inputs.n - 1);
                    load_eight(x.of_token(inputs.of(token), rows.n).x, piece, rows.n, u);
                    for (int h = 0; h < 2; h++)
                        for (int k = 0; k < 8; k++) sums[0][j][2 * h + i] = fmaf(w[h][k], u[k], sums[0][j][2 * h + i]);
                }
            }
        }
        put_chains(sums);
        total = add_chains<1>(total);
    }
    store_few(first_row, last_row, inputs.n, total, store);
}

#ifdef TENSOR_CORES
template <template <class, class> class Products, class T, class Inputs, class Store>
__device__ inline void multiply_few(Halves<T> rows, int first_row, int last_row, Floats x, Inputs inputs, Store store) {
    int n_some = min((inputs.n + 7) / 8, EIGHTS), g = lane() / 4, t = lane() % 4;
    float sums[EIGHTS][2][2] = {};                // of token g of eight: rows 2 t and 2 t + 1, and eight rows on
    UNROLL(1)
    for (int piece = warp(); piece < rows.n_pieces(); piece += Halves<T>::CHAINS) {
        int unit = 4 * piece + t;
        int4 w[2];
        for (int h = 0; h < 2; h++) {
            int row = min(first_row + g + 8 * h, last_row - 1);
            if (rows.is_whole(unit)) w[h] = *rows.whole(row, unit);
            else w[h] = rows.cut(row, unit);
        }
        for (int j = 0; j < EIGHTS; j++) {
            if (j > 0 && j >= n_some) break;
            float u[8];
            load_eight(x.of_token(inputs.of(min(8 * j + g, inputs.n - 1)), rows.n).x, unit, rows.n, u);
            unsigned words[Split<T>::TERMS][4];
            uint4 given[2];
            float scale = Split<T>::of(u, words);
            for (int h = 0; h < 2; h++) {
                float products[4] = {}, thirds[4] = {};
                for_mma(given, words[0], words[1]);
                add_products<T>(products, given, w[h]);
                if constexpr (Split<T>::TERMS == 3) {
                    for_mma(given, words[2], words[2]);
                    add_products<T>(thirds, given, w[h]);
                    products[2] += thirds[0], products[3] += thirds[1];
                }
                for (int k = 0; k < 2; k++) sums[j][h][k] = fmaf(scale, products[k] + products[2 + k], sums[j][h][k]);
            }
        }
    }
    for (int j = 0; j < EIGHTS; j++)              // where `store_few` looks for them
        for (int h = 0; h < 2; h++)
            for (int k = 0; k < 2; k++)
                few_steps()[warp()].chains[0][WARP * (4 * j + 2 * h + g % 2) + 4 * (2 * t + k) + g / 2] = sums[j][h][k];
    store_few(first_row, last_row, inputs.n, add_chains<1>(0.f), store);
}
#endif
