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

template <class Rows, class Input>
__device__ inline void sparse_mlp(Rows up, Rows down, Input x, RowBias bias, const int* ids,
                                  const int* count, float* partial, int n_rows, int activation) {
    Ungated<Rows, Input> hidden{up, x.of_token((int)blockIdx.y, up.n), bias, activation};
    sum_rows(hidden, down, ids, count, partial, n_rows);
}

KERNEL_WIDE sparse_mlp_f32(const float* __restrict__ up, const float* __restrict__ down,
                           const float4* __restrict__ x, const float* __restrict__ bias,
                           const int* __restrict__ neurons, const int* __restrict__ ids,
                           const int* __restrict__ count, float* __restrict__ partial,
                           int n_rows, int n, int has_bias, int activation) {
    sparse_mlp(Plain<float>(up, n), Plain<float>(down, n), X_f32, RowBias{bias, neurons, has_bias}, ids,
               count, partial, n_rows, activation);
}
KERNEL_WIDE sparse_mlp_f16(const __half* __restrict__ up, const __half* __restrict__ down,
                           const float4* __restrict__ x, const float* __restrict__ bias,
                           const int* __restrict__ neurons, const int* __restrict__ ids,
                           const int* __restrict__ count, float* __restrict__ partial,
                           int n_rows, int n, int has_bias, int activation) {
    sparse_mlp(Plain<__half>(up, n), Plain<__half>(down, n), X_f32, RowBias{bias, neurons, has_bias}, ids,
               count, partial, n_rows, activation);
}
KERNEL_WIDE sparse_mlp_bf16(const unsigned short* __restrict__ up, const unsigned short* __restrict__ down,
                            const float4* __restrict__ x, const float* __restrict__ bias,
                            const int* __restrict__ neurons, const int* __restrict__ ids,
                            const int* __restrict__ count, float* __restrict__ partial,
                            int n_rows, int n, int has_bias, int activation) {
    typedef Plain<unsigned short> Rows;
    sparse_mlp(Rows(up, n), Rows(down, n), X_f32, RowBias{bias, neurons, has_bias}, ids, count, partial,
               n_rows, activation);
}
KERNEL_WIDE sparse_mlp_q8_0(const __half* __restrict__ up_scales, const int4* __restrict__ up,
                            const __half* __restrict__ down_scales, const int4* __restrict__ down,
                            const int4* __restrict__ q, const float* __restrict__ d,
                            const int* __restrict__ sum, const float* __restrict__ bias,
                            const int* __restrict__ neurons, const int* __restrict__ ids,
                            const int* __restrict__ count, float* __restrict__ partial,
                            int n_rows, int n, int has_bias, int activation) {
    sparse_mlp(Q8_0(up_scales, up, n), Q8_0(down_scales, down, n), Quantised{q, d, sum},
               RowBias{bias, neurons, has_bias}, ids, count, partial, n_rows, activation);
}
KERNEL_WIDE sparse_mlp_q4_0(const __half* __restrict__ up_scales, const uint4* __restrict__ up,
                            const __half* __restrict__ down_scales, const uint4* __restrict__ down,
                            const int4* __restrict__ q, const float* __restrict__ d,
                            const int* __restrict__ sum, const float* __restrict__ bias,
                            const int* __restrict__ neurons, const int* __restrict__ ids,
                            const int* __restrict__ count, float* __restrict__ partial,
                            int n_rows, int n, int has_bias, int activation) {
    sparse_mlp(Q4_0(up_scales, up, n), Q4_0(down_scales, down, n), Quantised{q, d, sum},
               RowBias{bias, neurons, has_bias}, ids, count, partial, n_rows, activation);
}
