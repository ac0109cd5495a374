// Sums of vectors: of two, and of the parts of a split layer with what follows.
#include "addends.h"

KERNEL add(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y, int n) {
    int i = thread_of_row();
    if (i < n) y[i] = a[i] + b[i];
}

// y = ((hot + bias) + other) + residual, each but hot if `flags` says so. grid: (columns / 256, tokens).
KERNEL merge(const float* __restrict__ hot, const float* __restrict__ bias, const float* __restrict__ other,
             const float* __restrict__ residual, float* __restrict__ y, int n, int flags) {
    int column = thread_of_row();
    size_t at = (size_t)blockIdx.y * n + column;
    Addends addends{bias, other, residual, flags};
    if (column < n) y[at] = addends.onto(hot[at], addends.others(at), at, column);
}
