// The hidden values of a gated FFN whose down matrix has a row an output: h = act(gate x) * (up x).
#include "activations.h"
#include "parameters.h"

// One warp a row; the up row is not read where the gate makes the value zero.
// grid: (rows / warps of a block, tokens). h[n_tokens][n_rows].
template <class Gate, class Up, class Input>
__device__ inline void gated_ffn_hidden(Gate gate, Up up, Input x, float* h, int n_rows, int activation) {
    int row = thread_of_row() / WARP, token = (int)blockIdx.y;
    if (row >= n_rows) return;                    // a whole warp leaves, and no barrier follows
    x = x.of_token(token, gate.n);
    float g = gate.dot(row, x);
    float v = is_closed(g, activation) ? 0.f : gated(g, up.dot(row, x), activation);
    if (lane() == 0) h[(size_t)token * n_rows + row] = v;
}

#define FFN_HIDDEN(ENDING, G, U) \
KERNEL_WIDE gated_ffn_hidden_##ENDING(PLANES_##G(gate), PLANES_##U(up), INPUT_##G, float* __restrict__ h, int n_rows, int n, \
                      int activation) { \
    gated_ffn_hidden(ROWS_##G(gate, n), ROWS_##U(up, n), X_##G, h, n_rows, activation); \
}
TWO_TYPES(FFN_HIDDEN)
