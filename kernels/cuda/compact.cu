// A mask of neurons to the ascending list of the rows to read.
#include "mask.h"

// Every lane gets the sum over the lanes up to itself.
__device__ static inline int sum_up_to(int v) {
    for (int d = 1; d < WARP; d *= 2) {
        int below = __shfl_up_sync(ALL_LANES, v, d);
        if (lane() >= d) v += below;
    }
    return v;
}

constexpr int LOADS = 8;                          // a thread's, on the way at once

// The votes of 32 * n_pieces rows from `first` on, a warp together: lane k gets those of piece k.
__device__ static inline unsigned votes_of_pieces(const unsigned* mask, const int* neurons, int first,
                                                  int n_pieces, int n_rows) {
    unsigned votes = 0;
    for (int piece = 0; piece < n_pieces; piece += LOADS) {
        int neuron[LOADS];
        for (int k = 0; k < LOADS; k++) {
            int row = first + (piece + k) * WARP + lane();
            neuron[k] = piece + k < n_pieces && row < n_rows ? neurons[row] : -1;
        }
        bool listed[LOADS];
        for (int k = 0; k < LOADS; k++) listed[k] = neuron[k] >= 0 && is_listed(mask, neuron[k]);
        for (int k = 0; k < LOADS; k++) {
            unsigned of_piece = __ballot_sync(ALL_LANES, listed[k]);
            if (lane() == piece + k) votes = of_piece;
        }
    }
    return votes;
}

// mask[n_tokens][n_words]; neurons[n_rows] says which neuron each row belongs to. Rows that the mask
// lists go to ids[n_tokens][n_rows], ascending, their number to count[n_tokens], and is added to *total,
// which wraps. One block of threads a token. Its warps take neighbouring stretches of up to 32 pieces of 32 rows, and meet once a pass.
KERNEL compact(const unsigned* __restrict__ mask, const int* __restrict__ neurons, int* __restrict__ ids,
               int* __restrict__ count, unsigned* __restrict__ total, int n_rows, int n_words) {
    __shared__ int found[WARP];
    mask += (size_t)blockIdx.x * n_words, ids += (size_t)blockIdx.x * n_rows;
    int n_found = 0;
    for (int start = 0; start < n_rows;) {
        int left = (n_rows - start + WARP - 1) / WARP, n_pieces = min((left + n_warps() - 1) / n_warps(), WARP);
        int first = start + warp() * n_pieces * WARP;
        unsigned votes = votes_of_pieces(mask, neurons, first, n_pieces, n_rows);
        int mine = __popc(votes), up_to_mine = sum_up_to(mine);
        if (lane() == WARP - 1) found[warp()] = up_to_mine;
        __syncthreads();
        int at = n_found + up_to_mine - mine;     // where the rows of this lane's piece begin
        for (int w = 0; w < n_warps(); w++) {
            if (w < warp()) at += found[w];
            n_found += found[w];
        }
        for (int piece = 0; piece < n_pieces; piece++) {
            unsigned of_piece = __shfl_sync(ALL_LANES, votes, piece);
            int begin = __shfl_sync(ALL_LANES, at, piece);
            if (of_piece >> lane() & 1)
                ids[begin + __popc(of_piece & ((1u << lane()) - 1))] = first + piece * WARP + lane();
        }
        start += n_warps() * n_pieces * WARP;
        __syncthreads();                          // found is about to be written again
    }
    if (threadIdx.x == 0) count[blockIdx.x] = n_found, atomicAdd(total, (unsigned)n_found);
}
