// Inputs to int8 in blocks of 32, with a float scale and the sum of the 32 for Q4_0's offset.
#include "quantise.h"

// x[n_blocks * 32] -> q likewise, d[n_blocks], sum[n_blocks]; one thread four numbers.
KERNEL quantise(const float4* __restrict__ x, signed char* __restrict__ q, float* __restrict__ d,
                int* __restrict__ sum, int n_blocks) {
    size_t four = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    bool is_there = four < (size_t)n_blocks * LANES_OF_BLOCK;
    quantise_four(is_there ? x[four] : float4{}, four * IN_A_LANE, is_there, q, d, sum);
}
