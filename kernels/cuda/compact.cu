// A mask of neurons to the ascending list of the rows to read.
#include "listing.h"

// mask[n_tokens][n_words] and held[n_words]: see listing.h. Rows that the mask lists go to ids[n_tokens][n_rows],
// ascending, their number to count[n_tokens], and is added to *total, which wraps. One block of threads a token.
KERNEL compact(const unsigned* __restrict__ mask, const unsigned* __restrict__ held, int* __restrict__ ids,
               int* __restrict__ count, unsigned* __restrict__ total, int n_rows, int n_words) {
    Listing listing = list_rows(mask + (size_t)blockIdx.x * n_words, held, n_words);
    ids += (size_t)blockIdx.x * n_rows;
    listing.each(0, listing.n, [&](int at, int row) { ids[at] = row; });
    if (threadIdx.x == 0) count[blockIdx.x] = listing.n, atomicAdd(total, (unsigned)listing.n);
}
