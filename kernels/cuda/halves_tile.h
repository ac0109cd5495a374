// A step of F16 or BF16 rows in shared memory, for tensor cores: a piece, which is 32 halves, of 64 rows as they are,
// and of 64 inputs as sums of halves (weights_half.h), made once for all rows. Lane 4 g + t reads unit t of line g, so
// eight lanes read 128 bytes side by side.
//
// Asynchronous copies bring rows, and inputs as they are, to where the thread puts their halves once they are there.
#pragma once
#include "matmul_tile.h"

#ifdef TENSOR_CORES
template <class T> struct HalvesTile {
    int4 rows[TILE_SIDE * UNITS];
    uint4 inputs[Split<T>::TERMS][TILE_SIDE * UNITS];  // two terms for each mma, then third terms
    float scales[TILE_SIDE];                      // of the inputs' pieces, for F16
};
template <class T> __device__ inline HalvesTile<T>& halves_tile(int which) {
    constexpr int BYTES = (int)sizeof(HalvesTile<T>) - (Split<T>::HAS_SCALE ? 0 : TILE_SIDE * 4);
    return *(HalvesTile<T>*)(tile_memory() + which * BYTES);
}

// Copies of a piece: of rows up to last_row - 1, and of inputs; what lies outside is zero. A thread has a unit of both.
template <class T, class Inputs>
__device__ inline void begin_step(HalvesTile<T>& tile, Halves<T> rows, int first_row, int last_row, Floats x, Inputs inputs,
                                  int piece) {
    int line = (int)(threadIdx.x / UNITS), unit = piece * UNITS + (int)(threadIdx.x % UNITS), row = first_row + line;
    bool is_there = row < last_row && rows.is_whole(unit);
    if (is_there || row >= last_row || rows.n % 8 == 0)
        copy_async<16>(tile.rows + threadIdx.x, rows.whole(is_there ? row : 0, is_there ? unit : 0), is_there);
    else {
        int4 own = rows.cut(row, unit);  // word by word: the race build does not see that a call's answer is stored
        tile.rows[threadIdx.x] = {own.x, own.y, own.z, own.w};
    }
    Floats own = x.of_token(inputs.of(line), rows.n);
    int n = line < inputs.n ? rows.n : 0;
    for (int k = 0; k < 2; k++)
        copy_four((int4*)tile.inputs[k] + threadIdx.x, x, own, 2 * unit + k, n, rows.n % 4 == 0);
    commit_copies();
}

// Puts halves in the place of the inputs that the thread has copied.
template <class T> __device__ inline void split_inputs(HalvesTile<T>& tile) {
    wait_for_copies<0>();
    float numbers[8];
    for (int k = 0; k < 2; k++) load4((const float*)(tile.inputs[k] + threadIdx.x), numbers + 4 * k);
    unsigned words[Split<T>::TERMS][4];
    uint4 given[2];
    float scale = Split<T>::of(numbers, words);
    for_mma(given, words[0], words[1]);
    for (int k = 0; k < 2; k++) tile.inputs[k][threadIdx.x] = given[k];
    if constexpr (Split<T>::TERMS == 3) {
        // The input eight lines on or back has the other rows of the mma. The first mma's lie in the earlier of both
        // lines, the second's in the later one.
        constexpr unsigned LATER = 8 * UNITS;
        for (int k = 0; k < 2; k++) {
            unsigned* both = (unsigned*)(tile.inputs[2] + (threadIdx.x & ~LATER) + LATER * k) + threadIdx.x / LATER % 2;
            both[0] = words[2][2 * k], both[2] = words[2][2 * k + 1];
        }
    }
    if (Split<T>::HAS_SCALE && threadIdx.x % UNITS == 0) tile.scales[threadIdx.x / UNITS] = scale;
}
#endif
