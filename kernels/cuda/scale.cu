// A vector times a number.
#include "common.h"

KERNEL scale(const float* __restrict__ x, float* __restrict__ y, int n, float factor) {
    int i = thread_of_row();
    if (i < n) y[i] = x[i] * factor;
}
