// What may be added to a sum: a bias, the other side's part, the residual, always in this order.
#pragma once
#include "common.h"

// bias[n]; other and residual as large as the result. What the flags do not name is never read.
struct Addends {
    enum { HAS_BIAS = 1, HAS_RESIDUAL = 2, HAS_OTHER = 8 };
    const float *bias, *other, *residual;
    int flags;
    // at: place in the result; column: place in its row.
    __device__ float others(size_t at) const { return flags & HAS_OTHER ? other[at] : 0.f; }
    // of_other: `others`, which may lie in the host's memory: who has work to do fetches it before that.
    __device__ float onto(float sum, float of_other, size_t at, int column) const {
        if (flags & HAS_BIAS) sum += bias[column];
        if (flags & HAS_OTHER) sum += of_other;
        if (flags & HAS_RESIDUAL) sum += residual[at];
        return sum;
    }
};
