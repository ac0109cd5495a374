// The walk over the active rows that the sparse FFNs, with and without a gate, share.
//
// Each block goes through the token's mask for itself and finds the active rows. They are cut into as many groups as
// the grid has blocks, by their number alone. A group fits a tile: first each warp works out the hidden values of whole
// rows, then rows whose value is zero are dropped, then each thread sums eight columns of the down rows over the tile,
// in ascending order. sum_groups adds the groups. matmul_transposed.cu has the same order, group by group, for a batch.
#pragma once
#include "activations.h"
#include "listing.h"
#include "weights.h"

constexpr int TILE = 256;                         // rows of the largest group; their hidden values lie in shared memory
struct Tile { float hidden[TILE]; int row[TILE], n_live; };
__device__ static inline Tile& shared_tile() {
    __shared__ Tile tile;
    return tile;
}

// Keeps the rows whose hidden value is not zero, in their order. For one warp.
__device__ static inline void drop_zeros(Tile& tile, int n_tile) {
    int n_live = 0;
    for (int first = 0; first < n_tile; first += WARP) {
        int i = first + lane(), row = i < n_tile ? tile.row[i] : 0;
        float h = i < n_tile ? tile.hidden[i] : 0.f;
        unsigned live = __ballot_sync(ALL_LANES, h != 0.f);
        __syncwarp();                             // all have read what is about to be written
        int at = n_live + __popc(live & ((1u << lane()) - 1));
        if (h != 0.f) tile.hidden[at] = h, tile.row[at] = row;
        n_live += __popc(live);
    }
    if (lane() == 0) tile.n_live = n_live;
}

// sum[k] += the tile's hidden values times eight columns of their down rows. The loads of several rows
// go out together: after the last row it is read again, rather than branched around, and not added.
template <class Rows> __device__ inline void add_tile(const Tile& tile, Rows down, int unit, float* sum) {
    constexpr int AT_ONCE = Rows::ROWS_AT_ONCE;
    int n_live = tile.n_live;
    for (int i = 0; i < n_live; i += AT_ONCE) {
        float w[AT_ONCE][8];
        for (int j = 0; j < AT_ONCE; j++) down.eight(tile.row[min(i + j, n_live - 1)], unit, w[j]);
        for (int j = 0; j < AT_ONCE; j++)
            if (i + j < n_live)
                for (int k = 0; k < 8; k++) sum[k] = fmaf(tile.hidden[i + j], w[j][k], sum[k]);
    }
}

// The same row by row, where a row may end within the eight columns.
template <class Rows> __device__ inline void add_tile_end(const Tile& tile, Rows down, int unit, float* sum) {
    for (int i = 0; i < tile.n_live; i++) {
        float w[8];
        down.eight(tile.row[i], unit, w);
        for (int k = 0; k < 8; k++) sum[k] = fmaf(tile.hidden[i], w[k], sum[k]);
    }
}

// The eight sums to their columns. Columns 0 to 3 of a unit lie side by side, and 4 to 7.
template <class Rows> __device__ inline void put_sums(Rows down, int unit, const float* sum, float* partial) {
    for (int k = 0; k < 8; k += 4) {
        int column = down.column(unit, k);
        if (down.n % 4 == 0) {
            if (column < down.n) *(float4*)(partial + column) = {sum[k], sum[k + 1], sum[k + 2], sum[k + 3]};
        } else
            for (int j = 0; j < 4 && column + j < down.n; j++) partial[column + j] = sum[k + j];
    }
}

// A block's sums of its tile.
template <class Rows> __device__ inline void sum_tile(const Tile& tile, Rows down, float* partial) {
    for (int unit = threadIdx.x; unit < down.n_units(); unit += blockDim.x) {
        float sum[8] = {};
        if (8 * unit + 8 <= down.n) add_tile(tile, down, unit, sum);
        else add_tile_end(tile, down, unit, sum);
        put_sums(down, unit, sum, partial);
    }
}

// Masks of tokens, and which neurons are here: see listing.h. The number of rows found is added to *total, which wraps.
struct Active {
    const unsigned *mask, *held;                  // [n_tokens][n_words], [n_words]
    unsigned* total;
    int n_words;
};

// hidden(row): a row's hidden value, in every lane of a warp.
// grid: (groups, tokens) -> partial[n_tokens][groups][n].
template <class Hidden, class Rows>
__device__ inline void sum_rows(Hidden hidden, Rows down, Active active, float* partial) {
    Tile& tile = shared_tile();
    int token = (int)blockIdx.y;
    Listing listing = list_rows(active.mask + (size_t)token * active.n_words, active.held, active.n_words);
    int size = (listing.n + (int)gridDim.x - 1) / (int)gridDim.x;
    int first = min((int)blockIdx.x * size, listing.n), n_tile = min(size, listing.n - first);
    listing.each(first, first + n_tile, [&](int at, int row) { tile.row[at - first] = row; });
    if (blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(active.total, (unsigned)listing.n);
    partial += ((size_t)token * gridDim.x + blockIdx.x) * down.n;
    __syncthreads();                              // the rows are there
    for (int i = warp(); i < n_tile; i += n_warps()) {
        float h = hidden(tile.row[i]);
        if (lane() == 0) tile.hidden[i] = h;
    }
    __syncthreads();                              // every hidden value is there
    if (warp() == 0) drop_zeros(tile, n_tile);
    __syncthreads();                              // and the list of those that count
    sum_tile(tile, down, partial);
}
