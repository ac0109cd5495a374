// The products of expert_rows.cu for many tokens, expert by expert: tiles of 64 rows of an expert by 64 of its pairs, so
// that a row comes from memory once for them. Each product has the bits that expert_rows gives it.
#include "matmul.h"

// Pairs of one expert, in ascending order; `last` is the last that was looked at.
struct PairsOfTile { int pairs[TILE_SIDE], n, last; };
__device__ static inline PairsOfTile& pairs_of_tile() {
    __shared__ PairsOfTile list;
    return list;
}

// The expert's next pairs behind `last`, 64 at most. For one warp.
__device__ inline void list_pairs(PairsOfTile& list, const int* chosen, int expert, int last, int n_pairs, int n_used) {
    int n = 0;
    for (int first = last + 1; first < n_pairs && n < TILE_SIDE; first += WARP) {
        int pair = first + lane();
        bool is_its = pair < n_pairs && chosen[(size_t)(pair / n_used) * 2 * n_used + pair % n_used] == expert;
        unsigned found = __ballot_sync(ALL_LANES, is_its);
        int place = n + __popc(found & ((1u << lane()) - 1));
        if (is_its && place < TILE_SIDE) list.pairs[place] = pair;
        if (is_its && place == TILE_SIDE - 1) list.last = pair;
        n += __popc(found);
    }
    if (lane() == 0) list.n = min(n, TILE_SIDE);
    if (lane() == 0 && n < TILE_SIDE) list.last = n_pairs;
}

// The inputs of the pairs: of each its own, or its token's.
struct InputsOfPairs {
    const int* pairs;
    int n, n_used;
    __device__ int of(int t) const { return t < n ? pairs[t] / n_used : 0; }
};

// Arguments as those of expert_rows. grid: (rows / 64, experts).
template <class Rows, class Input>
__device__ inline void expert_tiles(Rows rows, Input x, const int* slots, const int* chosen, const float* bias,
                                    float* y, int n_rows, int n_pairs, int n_used, int per_pair, int has_bias,
                                    int bias_stride) {
    PairsOfTile& list = pairs_of_tile();
    int expert = (int)blockIdx.y, begin = (int)blockIdx.x * TILE_SIDE, end = min(begin + TILE_SIDE, n_rows), last = -1;
    for (;;) {
        if (warp() == 0) list_pairs(list, chosen, expert, last, n_pairs, n_used);
        __syncthreads();                          // the list is there
        int n = list.n, slot = n ? slots[expert] : 0, own = slot * n_rows;
        last = list.last;
        auto put = [&](int row, int t, float v) {
            if (has_bias && slot >= 0) v += bias[(size_t)expert * bias_stride + row];
            y[(size_t)list.pairs[t] * n_rows + row] = v;
        };
        if (n && slot >= 0)
            multiply_tile(rows, own + begin, own + end, x, InputsOfPairs{list.pairs, n, per_pair ? 1 : n_used},
                          places(rows), [&](int row, int t, float v) { put(row - own, t, v); });
        else
            for (int i = threadIdx.x; i < n * (end - begin); i += blockDim.x)
                put(begin + i % (end - begin), i / (end - begin), 0.f);
        if (n < TILE_SIDE) return;                // the whole block
        __syncthreads();                          // the list is about to be written again
    }
}

#define EXPERT_TILES(T) \
KERNEL_WIDE expert_tiles_##T(PLANES_##T(w), INPUT_##T, const int* __restrict__ slots, const int* __restrict__ chosen, \
                             const float* __restrict__ bias, float* __restrict__ y, int n_rows, int n, int n_used, \
                             int per_pair, int has_bias, int bias_stride, int n_pairs) { \
    expert_tiles(ROWS_##T(w, n), X_##T, slots, chosen, bias, y, n_rows, n_pairs, n_used, per_pair, has_bias, \
                 bias_stride); \
}
ONE_TYPE(EXPERT_TILES)
