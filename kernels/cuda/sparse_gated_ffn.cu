// The gated FFN over the active rows: y = sum_i h_i down_i with h_i = act(gate_i x) (up_i x), or
// act(gate_i x) act(up_i x) for relu_both.
#include "parameters.h"
#include "parameters.h"
#include "sparse_rows.h"

// The up row is read only where the gate is open.
template <class Rows, class Input> struct Gated {
    Rows gate, up;
    Input x;
    int activation;
    __device__ float operator()(int row) const {
        float g = gate.dot(row, x);
        return is_closed(g, activation) ? 0.f : gated(g, up.dot(row, x), activation);
    }
};

template <class Rows, class Input>
__device__ inline void sparse_gated_ffn(Rows gate, Rows up, Rows down, Input x, const int* ids, const int* count,
                                  float* partial, int n_rows, int activation) {
    Gated<Rows, Input> hidden{gate, up, x.of_token((int)blockIdx.y, gate.n), activation};
    sum_rows(hidden, down, ids, count, partial, n_rows);
}

#define SPARSE_GATED_FFN(T) \
KERNEL_WIDE sparse_gated_ffn_##T(PLANES_##T(gate), PLANES_##T(up), PLANES_##T(down), INPUT_##T, \
                           const int* __restrict__ ids, const int* __restrict__ count, \
                           float* __restrict__ partial, int n_rows, int n, int activation) { \
    sparse_gated_ffn(ROWS_##T(gate, n), ROWS_##T(up, n), ROWS_##T(down, n), X_##T, ids, count, partial, n_rows, \
               activation); \
}
SPARSE_GATED_FFN(f32) SPARSE_GATED_FFN(f16) SPARSE_GATED_FFN(bf16) SPARSE_GATED_FFN(q8_0) SPARSE_GATED_FFN(q4_0)
