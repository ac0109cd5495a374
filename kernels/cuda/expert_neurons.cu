// The FFNs of chosen experts of which single neurons are here: one row a neuron in gate, up and down.
//
// The rows that are here lie in the order of their experts: those of expert e are starts[e] to starts[e + 1] - 1,
// starts[n_expert + 1]. chosen[n_tokens][2 n_used] is as top_k leaves it. A pair is a token and one of its choices;
// its neuron i is the i-th row of its expert that is here, and has hidden[pair][n_ff]'s place i. A pair's sums
// depend on nothing but its expert and its token, so a batch has the bits of its tokens one by one.
#include "parameters.h"
#include "sparse_rows.h"

struct Here { int token, first, n; };             // a pair's token, the first of its rows, how many there are
__device__ inline Here rows_here(const int* starts, const int* chosen, int n_used) {
    int pair = (int)blockIdx.y, token = pair / n_used;
    int expert = chosen[(size_t)token * 2 * n_used + pair % n_used], first = starts[expert];
    return {token, first, starts[expert + 1] - first};
}

// hidden[pair][i] = gate_i . x, one warp a row or less (lanes.h). grid: (n_ff / rows of a block, pairs).
template <class Rows, class Input>
__device__ inline void expert_gates(Rows rows, Input x, const int* starts, const int* chosen, float* hidden,
                                    int n_ff, int n_used) {
    Lanes lanes = rows.lanes();
    int i = lanes.row_of(thread_of_row());
    Here here = rows_here(starts, chosen, n_used);
    bool is_here = i < here.n;
    float v = dot_where(is_here, rows, here.first + i, x.of_token(here.token, rows.n), lanes);
    if (is_here && lanes.is_first()) hidden[(size_t)blockIdx.y * n_ff + i] = v;
}

// hidden[pair][i] = act(hidden[pair][i]) (up_i . x), up read where that is not zero anyway, or left out for being
// below the row's threshold. Same grid.
template <class Rows, class Input>
__device__ inline void expert_ups(Rows rows, Input x, const int* starts, const int* chosen, float* hidden, int n_ff,
                                  int n_used, int activation, Least least) {
    Lanes lanes = rows.lanes();
    int i = lanes.row_of(thread_of_row());
    Here here = rows_here(starts, chosen, n_used);
    bool is_here = i < here.n;
    float* own = hidden + (size_t)blockIdx.y * n_ff + i;
    float gate = is_here ? *own : 0.f;
    bool is_open = is_here && !is_closed(gate, activation) &&
                   !least.leaves_out(gate, here.first + i, here.token, activation);
    float u = dot_where(is_open, rows, here.first + i, x.of_token(here.token, rows.n), lanes);
    __syncwarp();                                 // all have read what is about to be written
    if (is_here && lanes.is_first()) *own = is_open ? gated(gate, u, activation) : 0.f;
}

// partial[pair][group][n] = the sum of a group of the pair's neurons of hidden[pair][i] down_i; zeros are not read.
// grid: (groups, pairs).
template <class Rows>
__device__ inline void expert_down(Rows down, const int* starts, const int* chosen, const float* hidden,
                                   float* partial, int n_ff, int n_used) {
    Tile& tile = shared_tile();
    Here here = rows_here(starts, chosen, n_used);
    int size = (here.n + (int)gridDim.x - 1) / (int)gridDim.x;
    int first = min((int)blockIdx.x * size, here.n), n_tile = min(size, here.n - first);
    hidden += (size_t)blockIdx.y * n_ff, partial += ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * down.n;
    for (int i = threadIdx.x; i < n_tile; i += blockDim.x)
        tile.hidden[i] = hidden[first + i], tile.row[i] = here.first + first + i;
    __syncthreads();                              // every hidden value is there
    if (warp() == 0) drop_zeros(tile, n_tile);
    __syncthreads();                              // and the list of those that count
    sum_tile(tile, down, partial);
}

#define EXPERT_NEURONS(T) \
KERNEL_WIDE expert_gates_##T(PLANES_##T(w), INPUT_##T, const int* __restrict__ starts, \
                             const int* __restrict__ chosen, float* __restrict__ hidden, int n_ff, int n, \
                             int n_used) { \
    expert_gates(ROWS_##T(w, n), X_##T, starts, chosen, hidden, n_ff, n_used); \
} \
KERNEL_WIDE expert_ups_##T(PLANES_##T(w), INPUT_##T, const int* __restrict__ starts, \
                           const int* __restrict__ chosen, float* __restrict__ hidden, int n_ff, int n, int n_used, \
                           int activation, const float* __restrict__ least, \
                           const int* __restrict__ positions, int has_least) { \
    expert_ups(ROWS_##T(w, n), X_##T, starts, chosen, hidden, n_ff, n_used, activation, \
               Least{least, positions, has_least}); \
} \
KERNEL_WIDE expert_down_##T(PLANES_##T(w), const int* __restrict__ starts, const int* __restrict__ chosen, \
                            const float* __restrict__ hidden, float* __restrict__ partial, int n_ff, int n, \
                            int n_used) { \
    expert_down(ROWS_##T(w, n), starts, chosen, hidden, partial, n_ff, n_used); \
}
ONE_TYPE(EXPERT_NEURONS)
