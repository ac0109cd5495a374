// Weights as each type's rows give them: by sixteens, as products of integers take them, and by eights as floats.
#include "parameters.h"

template <class Rows> __device__ inline void decoded(Rows rows, int row, float* by_sixteens) {
    for (int unit = lane(); unit < rows.n / 16; unit += WARP) {
        int4 q = rows.sixteen(row, unit);
        int words[4] = {q.x, q.y, q.z, q.w};
        float d = rows.scale(row, unit), m = 0.f;
        if constexpr (Rows::MINIMA > 0) m = rows.minimum(row, unit);
        for (int k = 0; k < 16; k++)
            by_sixteens[16 * unit + k] = d * (float)(signed char)(words[k / 4] >> 8 * (k % 4)) - m;
    }
}
template <class T> __device__ inline void decoded(Plain<T> rows, int row, float* by_sixteens) {
    for (int k = lane(); k < rows.n; k += WARP) by_sixteens[k] = value(rows.values[row * rows.stride + k]);
}
template <class T> __device__ inline void decoded(Halves<T> rows, int row, float* by_sixteens) {
    decoded((Plain<T>)rows, row, by_sixteens);
}

// grid: rows, of one warp each.
template <class Rows> __device__ inline void both_ways(Rows rows, float* by_sixteens, float* by_eights) {
    int row = (int)blockIdx.x;
    by_sixteens += (size_t)row * rows.n, by_eights += (size_t)row * rows.n;
    decoded(rows, row, by_sixteens);
    for (int unit = lane(); unit < rows.n_units(); unit += WARP) {
        float w[8];
        rows.eight(row, unit, w);
        for (int k = 0; k < 8; k++) by_eights[rows.column(unit, k)] = w[k];
    }
}

#define DECODED(T) \
KERNEL decoded_##T(PLANES_##T(w), float* by_sixteens, float* by_eights, int n) { \
    both_ways(ROWS_##T(w, n), by_sixteens, by_eights); \
}
ONE_TYPE(DECODED)
