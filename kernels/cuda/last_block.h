// The last block of several to end goes on with what all of them wrote.
#pragma once
#include "common.h"

// Whether this block is the last of n to come here; all its threads then see what the others wrote before. The
// counter is 0 in front of a launch, and again behind it. Once a kernel, by all threads of the block.
__device__ static inline bool comes_last(unsigned* counter, unsigned n) {
    __shared__ int is_last;
    __syncthreads();                              // the block has written everything
    if (threadIdx.x == 0) {
        __threadfence();                          // and whoever sees it counted sees that
        is_last = atomicInc(counter, n - 1) == n - 1;
        __threadfence();                          // what is read from here on is not older than the count
    }
    __syncthreads();                              // the answer is there
    return is_last;
}
