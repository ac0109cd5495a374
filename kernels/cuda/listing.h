// From a mask of neurons to the rows to read. held[n_words] has a bit for each neuron whose row is here; the rows lie
// in the order of their neurons, so a row's number is how many bits of `held` stand before its own.
#pragma once
#include "common.h"

// What a block of threads finds in one token's mask; each thread has some neighbouring words.
struct Listing {
    const unsigned *mask, *held;
    int begin, end;                               // the thread's words
    int n, listed_before, held_before;            // listed rows in all words; rows in the words before the thread's
    // put(place in the list, row) for each of the thread's listed rows whose place is from `first` to `last` - 1.
    template <class Put> __device__ void each(int first, int last, Put put) const {
        int at = listed_before, row = held_before;
        for (int w = begin; w < end && at < last; w++) {
            unsigned here = held[w], left = here & mask[w];
            if (at + __popc(left) > first)
                for (; left; left &= left - 1, at++) {
                    int bit = __ffs((int)left) - 1;
                    if (at >= first && at < last) put(at, row + __popc(here & ((1u << bit) - 1)));
                }
            else at += __popc(left);
            row += __popc(here);
        }
    }
};

// Once a kernel, by all threads of its blocks. With the first barrier of two between what is put and who reads it.
__device__ static inline Listing list_rows(const unsigned* mask, const unsigned* held, int n_words) {
    __shared__ int2 of_warp[WARP];                // rows that are listed, and that are here
    int each = (n_words + (int)blockDim.x - 1) / (int)blockDim.x;
    int begin = min((int)threadIdx.x * each, n_words), end = min(begin + each, n_words);
    int n_listed = 0, n_held = 0;
    for (int w = begin; w < end; w++) n_listed += __popc(mask[w] & held[w]), n_held += __popc(held[w]);
    int listed = sum_up_to(n_listed), rows = sum_up_to(n_held);
    if (lane() == WARP - 1) of_warp[warp()] = {listed, rows};
    __syncthreads();                              // every warp's counts are there
    Listing found{mask, held, begin, end, 0, listed - n_listed, rows - n_held};
    for (int w = 0; w < n_warps(); w++) {
        int2 its = of_warp[w];
        if (w < warp()) found.listed_before += its.x, found.held_before += its.y;
        found.n += its.x;
    }
    return found;
}
