// How a block of threads walks over a row, for the norms: a thread takes four numbers at a time where the row is whole
// fours, so that more of memory is under way at once. Its own numbers come in ascending order.
#pragma once
#include "common.h"

template <class Take> __device__ inline void walk_row(const float* x, int n, Take take) {
    if (n % 4)
        for (int i = threadIdx.x; i < n; i += blockDim.x) take(x[i]);
    else
        for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
            float4 four = ((const float4*)x)[i];
            take(four.x), take(four.y), take(four.z), take(four.w);
        }
}
