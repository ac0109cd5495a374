// Numbers, scales and minima of each sixteen, as each type's rows give them.
#include "parameters.h"

// grid: rows, of one warp each.
template <class Rows> __device__ inline void units(Rows rows, signed char* numbers, float* scales, float* minima) {
    int row = (int)blockIdx.x, n_units = rows.n / 16;
    for (int unit = lane(); unit < n_units; unit += WARP) {
        size_t at = (size_t)row * n_units + unit;
        ((int4*)numbers)[at] = rows.sixteen(row, unit);
        scales[at] = rows.scale(row, unit);
        if constexpr (Rows::MINIMA > 0) minima[at] = rows.minimum(row, unit);
    }
}

#define UNITS(T) \
KERNEL units_##T(PLANES_##T(w), signed char* numbers, float* scales, float* minima, int n) { \
    units(ROWS_##T(w, n), numbers, scales, minima); \
}
ONE_TYPE(UNITS)
