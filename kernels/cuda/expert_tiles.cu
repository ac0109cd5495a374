// The products of expert_rows.cu for many tokens, expert by expert, so that a row comes from memory once for several
// pairs: tiles of 64 rows of an expert by 64 of its pairs, or of 16 by 16 (matmul_few.h). Each product has the bits
// that expert_rows gives it.
#include "matmul_few_floats.h"

// Pairs of one expert, in ascending order, and the input of each; where the expert's rows are, if there are pairs;
// `last` is the last pair that was looked at.
struct PairsOfTile { int pairs[TILE_SIDE], inputs[TILE_SIDE], n, slot, last; };
__device__ static inline PairsOfTile& pairs_of_tile() {
    __shared__ PairsOfTile list;
    return list;
}

// The expert's next pairs behind `last`, SIDE at most. For one warp.
template <int SIDE>
__device__ inline void list_pairs(PairsOfTile& list, const int* slots, const int* chosen, int expert, int last,
                                  int n_pairs, int n_used, int per_pair) {
    int n = 0;
    for (int first = last + 1; first < n_pairs && n < SIDE; first += WARP) {
        int pair = first + lane();
        bool is_its = pair < n_pairs && chosen[(size_t)(pair / n_used) * 2 * n_used + pair % n_used] == expert;
        unsigned found = __ballot_sync(ALL_LANES, is_its);
        int place = n + __popc(found & ((1u << lane()) - 1));
        if (is_its && place < SIDE) list.pairs[place] = pair, list.inputs[place] = per_pair ? pair : pair / n_used;
        if (is_its && place == SIDE - 1) list.last = pair;
        n += __popc(found);
    }
    if (lane() == 0) list.n = min(n, SIDE), list.slot = n ? slots[expert] : 0;
    if (lane() == 0 && n < SIDE) list.last = n_pairs;
}

struct InputsOfPairs {
    const int* inputs;
    int n;
    __device__ int of(int t) const { return t < n ? inputs[t] : 0; }
};

// Arguments as those of expert_rows. grid: (rows / SIDE, experts).
template <int SIDE, class Rows, class Input>
__device__ inline void expert_tiles(Rows rows, Input x, const int* slots, const int* chosen, const float* bias,
                                    float* y, int n_rows, int n_pairs, int n_used, int per_pair, int has_bias,
                                    int bias_stride) {
    PairsOfTile& list = pairs_of_tile();
    int expert = (int)blockIdx.y, begin = (int)blockIdx.x * SIDE, end = min(begin + SIDE, n_rows), last = -1;
    for (;;) {
        if (warp() == 0) list_pairs<SIDE>(list, slots, chosen, expert, last, n_pairs, n_used, per_pair);
        __syncthreads();                          // the list is there
        int n = list.n, own = list.slot * n_rows;
        auto put = [&](int row, int t, float v) {
            if (has_bias && list.slot >= 0) v += bias[(size_t)expert * bias_stride + row];
            y[(size_t)list.pairs[t] * n_rows + row] = v;
        };
        if (n && list.slot >= 0) {
            InputsOfPairs inputs{list.inputs, n};
            auto store = [&](int row, int t, float v) { put(row - list.slot * n_rows, t, v); };
            if constexpr (SIDE == TILE_SIDE) multiply_tile(rows, own + begin, own + end, x, inputs, places(rows), store);
            else multiply_few<FewProducts>(rows, own + begin, own + end, x, inputs, store);
        } else
            for (int i = threadIdx.x; i < n * (end - begin); i += blockDim.x)
                put(begin + i % (end - begin), i / (end - begin), 0.f);
        if (n < SIDE) return;                     // the whole block
        last = list.last;
        __syncthreads();                          // the list is about to be written again
    }
}

#define EXPERT_TILES(T, KIND, SIDE) \
KERNEL_WIDE KIND##_##T(PLANES_##T(w), INPUT_##T, const int* __restrict__ slots, const int* __restrict__ chosen, \
                       const float* __restrict__ bias, float* __restrict__ y, int n_rows, int n, int n_used, \
                       int per_pair, int has_bias, int bias_stride, int n_pairs) { \
    expert_tiles<SIDE>(ROWS_##T(w, n), X_##T, slots, chosen, bias, y, n_rows, n_pairs, n_used, per_pair, has_bias, \
                       bias_stride); \
}
#define LARGE_TILES(T) EXPERT_TILES(T, expert_tiles, TILE_SIDE)
#define SMALL_TILES(T) EXPERT_TILES(T, expert_few, FEW_SIDE)
ONE_TYPE(LARGE_TILES)
ONE_TYPE(SMALL_TILES)
