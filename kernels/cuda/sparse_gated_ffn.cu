// The gated FFN over the active rows: y = sum_i h_i down_i with h_i = act(gate_i x) (up_i x), or
// act(gate_i x) act(up_i x) for relu_both. Neurons whose |act(gate_i x)| is below their threshold add nothing.
#include "parameters.h"
#include "sparse_rows.h"

// The up row is read only where the gate is open.
template <class Gate, class Up, class Input> struct Gated {
    Gate gate;
    Up up;
    Input x;
    int activation;
    Least least;
    __device__ float operator()(int row) const {
        float g = gate.dot(row, x);
        if (is_closed(g, activation) || least.leaves_out(g, row, (int)blockIdx.y, activation)) return 0.f;
        return gated(g, up.dot(row, x), activation);
    }
};

template <class Gate, class Up, class Down, class Input>
__device__ inline void sparse_gated_ffn(Gate gate, Up up, Down down, Input x, Active active,
                                  float* partial, int activation, Least least) {
    Gated<Gate, Up, Input> hidden{gate, up, x.of_token((int)blockIdx.y, gate.n), activation, least};
    sum_rows(hidden, down, active, partial);
}

#define SPARSE_GATED_FFN(ENDING, G, U, D) \
KERNEL_WIDE sparse_gated_ffn_##ENDING(PLANES_##G(gate), PLANES_##U(up), PLANES_##D(down), INPUT_##G, \
                           const unsigned* __restrict__ mask, const unsigned* __restrict__ held, \
                           unsigned* __restrict__ total, float* __restrict__ partial, int n_words, int n, \
                           int activation, const float* __restrict__ least, const int* __restrict__ positions, \
                           int has_least) { \
    sparse_gated_ffn(ROWS_##G(gate, n), ROWS_##U(up, n), ROWS_##D(down, n), X_##G, Active{mask, held, total, n_words}, \
               partial, activation, Least{least, positions, has_least}); \
}
THREE_TYPES(SPARSE_GATED_FFN)
