// A mask of neurons to the ascending list of the rows to read.
#include "common.h"

// mask[n_tokens][n_words] holds one bit a neuron, bit 0 first; neurons[n_rows] says which neuron each
// row belongs to. Rows whose bit is set go to ids[n_tokens][n_rows], ascending, their number to
// count[n_tokens]. One block of threads a token.
KERNEL compact(const unsigned* __restrict__ mask, const int* __restrict__ neurons, int* __restrict__ ids,
               int* __restrict__ count, int n_rows, int n_words) {
    __shared__ int found[WARP];
    mask += (size_t)blockIdx.x * n_words, ids += (size_t)blockIdx.x * n_rows;
    int n_found = 0;
    for (int first = 0; first < n_rows; first += blockDim.x) {
        int row = first + (int)threadIdx.x;
        int neuron = row < n_rows ? neurons[row] : 0;
        bool active = row < n_rows && (mask[neuron / 32] >> neuron % 32 & 1);
        unsigned votes = __ballot_sync(ALL_LANES, active);
        if (lane() == 0) found[warp()] = __popc(votes);
        __syncthreads();
        int before = 0, total = 0;
        for (int w = 0; w < n_warps(); w++) {
            if (w < warp()) before += found[w];
            total += found[w];
        }
        if (active) ids[n_found + before + __popc(votes & ((1u << lane()) - 1))] = row;
        n_found += total;
        __syncthreads();                          // found is about to be written again
    }
    if (threadIdx.x == 0) count[blockIdx.x] = n_found;
}
