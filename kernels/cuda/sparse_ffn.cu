// The FFN without a gate over the active rows: y = sum_i act(up_i x + bias_i) down_i. A neuron that is
// not listed adds nothing, whatever its bias.
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

template <class Up, class Down, class Input>
__device__ inline void sparse_ffn(Up up, Down down, Input x, RowBias bias, Active active, float* partial,
                                  int activation) {
    Ungated<Up, Input> hidden{up, x.of_token((int)blockIdx.y, up.n), bias, activation};
    sum_rows(hidden, down, active, partial);
}

#define SPARSE_FFN(ENDING, U, D) \
KERNEL_WIDE sparse_ffn_##ENDING(PLANES_##U(up), PLANES_##D(down), INPUT_##U, const float* __restrict__ bias, \
                           const int* __restrict__ neurons, const unsigned* __restrict__ mask, \
                           const unsigned* __restrict__ held, unsigned* __restrict__ total, \
                           float* __restrict__ partial, int n_words, int n, int has_bias, int activation) { \
    sparse_ffn(ROWS_##U(up, n), ROWS_##D(down, n), X_##U, RowBias{bias, neurons, has_bias}, \
               Active{mask, held, total, n_words}, partial, activation); \
}
TWO_TYPES(SPARSE_FFN)
