// Inputs to int8 in blocks of 32, with a float scale and the sum of the 32 for Q4_0's offset.
#include "quantise.h"

// x[n_blocks * 32] -> q likewise, d[n_blocks], sum[n_blocks]; one warp a block.
KERNEL quantise(const float* __restrict__ x, signed char* __restrict__ q, float* __restrict__ d,
                int* __restrict__ sum, int n_blocks) {
    int block = thread_of_row() / WARP;
    if (block < n_blocks) quantise_block(x[(size_t)block * BLOCK + lane()], block, q, d, sum);
}
