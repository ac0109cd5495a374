// The hidden values of a gated FFN whose down matrix has a row an output: h = act(gate x) * (up x).
#include "activations.h"
#include "parameters.h"

// One warp a row; the up row is not read where the gate makes the value zero.
// grid: (rows / warps of a block, tokens). h[n_tokens][n_rows].
template <class Rows, class Input>
__device__ inline void gated_ffn_hidden(Rows gate, Rows up, Input x, float* h, int n_rows, int activation) {
    int row = thread_of_row() / WARP, token = (int)blockIdx.y;
    if (row >= n_rows) return;                    // a whole warp leaves, and no barrier follows
    x = x.of_token(token, gate.n);
    float g = gate.dot(row, x);
    float v = is_closed(g, activation) ? 0.f : gated(g, up.dot(row, x), activation);
    if (lane() == 0) h[(size_t)token * n_rows + row] = v;
}

#define FFN_HIDDEN(T) \
KERNEL gated_ffn_hidden_##T(PLANES_##T(gate), PLANES_##T(up), INPUT_##T, float* __restrict__ h, int n_rows, int n, \
                      int activation) { \
    gated_ffn_hidden(ROWS_##T(gate, n), ROWS_##T(up, n), X_##T, h, n_rows, activation); \
}
FFN_HIDDEN(f32) FFN_HIDDEN(f16) FFN_HIDDEN(bf16) FFN_HIDDEN(q8_0) FFN_HIDDEN(q4_0)
