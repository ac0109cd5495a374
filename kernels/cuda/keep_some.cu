// What is positive says which rows of the head are wanted; where nothing is, all of them are.
#include "common.h"

constexpr int N_AT_ONCE = 1024;

// Let all of n numbers be 1 where none is positive. One block, which mostly ends behind the first numbers.
KERNEL keep_some(float* profile, int n) {
    for (int first = 0; first < n; first += N_AT_ONCE) {
        int some = 0, last = min(first + N_AT_ONCE, n);
        for (int i = first + (int)threadIdx.x; i < last; i += (int)blockDim.x) some |= profile[i] > 0.f;
        if (__syncthreads_or(some)) return;
    }
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) profile[i] = 1.f;
}
