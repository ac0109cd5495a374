// y = a + b.
#include "common.h"

KERNEL add(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y, int n) {
    int i = thread_of_row();
    if (i < n) y[i] = a[i] + b[i];
}
