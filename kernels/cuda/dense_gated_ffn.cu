// The hidden values of a gated FFN whose down matrix has a row an output: h = act(gate x) * (up x).
#include "activations.h"
#include "parameters.h"

// One warp a row, or less (lanes.h); the up row is not read where the gate makes the value zero.
// grid: (rows / rows of a block, tokens). h[n_tokens][n_rows].
template <class Gate, class Up, class Input>
__device__ inline void gated_ffn_hidden(Gate gate, Up up, Input x, float* h, int n_rows, int activation) {
    Lanes lanes = gate.lanes().or_more(up.lanes());
    int row = lanes.row_of(thread_of_row()), token = (int)blockIdx.y;
    if (lanes.first_row(thread_of_row()) >= n_rows) return;  // a whole warp leaves, and no barrier follows
    bool is_here = row < n_rows;
    x = x.of_token(token, gate.n);
    float g = dot_where(is_here, gate, row, x, lanes);
    bool is_open = is_here && !is_closed(g, activation);
    float u = dot_where(is_open, up, row, x, lanes);
    if (is_here && lanes.is_first()) h[(size_t)token * n_rows + row] = is_open ? gated(g, u, activation) : 0.f;
}

#define FFN_HIDDEN(ENDING, G, U) \
KERNEL_WIDE gated_ffn_hidden_##ENDING(PLANES_##G(gate), PLANES_##U(up), INPUT_##G, float* __restrict__ h, int n_rows, \
                      int n, int activation) { \
    gated_ffn_hidden(ROWS_##G(gate, n), ROWS_##U(up, n), X_##G, h, n_rows, activation); \
}
TWO_TYPES(FFN_HIDDEN)
