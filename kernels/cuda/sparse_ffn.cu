// The FFN without a gate over the active rows: y = sum_i act(up_i x + bias_i) down_i. A neuron that is
// not listed adds nothing, whatever its bias.
#include "parameters.h"
#include "parameters.h"
#include "sparse_rows.h"

// What is added to the rows' products: one number a neuron, or none; neurons[row] is a row's neuron.
struct RowBias {
    const float* values;
    const int* neurons;
    int is_there;
    __device__ float of(int row) const { return is_there ? values[neurons[row]] : 0.f; }
};

template <class Rows, class Input> struct Ungated {
    Rows up;
    Input x;
    RowBias bias;
    int activation;
    __device__ float operator()(int row) const {
        return activated(up.dot(row, x) + bias.of(row), activation);
    }
};

template <class Rows, class Input>
__device__ inline void sparse_ffn(Rows up, Rows down, Input x, RowBias bias, const int* ids,
                                  const int* count, float* partial, int n_rows, int activation) {
    Ungated<Rows, Input> hidden{up, x.of_token((int)blockIdx.y, up.n), bias, activation};
    sum_rows(hidden, down, ids, count, partial, n_rows);
}

#define SPARSE_FFN(T) \
KERNEL_WIDE sparse_ffn_##T(PLANES_##T(up), PLANES_##T(down), INPUT_##T, const float* __restrict__ bias, \
                           const int* __restrict__ neurons, const int* __restrict__ ids, \
                           const int* __restrict__ count, float* __restrict__ partial, int n_rows, int n, \
                           int has_bias, int activation) { \
    sparse_ffn(ROWS_##T(up, n), ROWS_##T(down, n), X_##T, RowBias{bias, neurons, has_bias}, ids, count, \
               partial, n_rows, activation); \
}
SPARSE_FFN(f32) SPARSE_FFN(f16) SPARSE_FFN(bf16) SPARSE_FFN(q8_0) SPARSE_FFN(q4_0)
