// The gated FFN over the active rows: y = sum_i h_i down_i with h_i = act(gate_i x) (up_i x), or
// act(gate_i x) act(up_i x) for relu_both.
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
__device__ inline void sparse_ffn(Rows gate, Rows up, Rows down, Input x, const int* ids, const int* count,
                                  float* partial, int n_rows, int activation) {
    Gated<Rows, Input> hidden{gate, up, x.of_token((int)blockIdx.y, gate.n), activation};
    sum_rows(hidden, down, ids, count, partial, n_rows);
}

KERNEL_WIDE sparse_ffn_f32(const float* __restrict__ gate, const float* __restrict__ up,
                           const float* __restrict__ down, const float4* __restrict__ x,
                           const int* __restrict__ ids, const int* __restrict__ count,
                           float* __restrict__ partial, int n_rows, int n, int activation) {
    typedef Plain<float> Rows;
    sparse_ffn(Rows(gate, n), Rows(up, n), Rows(down, n), X_f32, ids, count, partial, n_rows, activation);
}
KERNEL_WIDE sparse_ffn_f16(const __half* __restrict__ gate, const __half* __restrict__ up,
                           const __half* __restrict__ down, const float4* __restrict__ x,
                           const int* __restrict__ ids, const int* __restrict__ count,
                           float* __restrict__ partial, int n_rows, int n, int activation) {
    typedef Plain<__half> Rows;
    sparse_ffn(Rows(gate, n), Rows(up, n), Rows(down, n), X_f32, ids, count, partial, n_rows, activation);
}
KERNEL_WIDE sparse_ffn_bf16(const unsigned short* __restrict__ gate, const unsigned short* __restrict__ up,
                            const unsigned short* __restrict__ down, const float4* __restrict__ x,
                            const int* __restrict__ ids, const int* __restrict__ count,
                            float* __restrict__ partial, int n_rows, int n, int activation) {
    typedef Plain<unsigned short> Rows;
    sparse_ffn(Rows(gate, n), Rows(up, n), Rows(down, n), X_f32, ids, count, partial, n_rows, activation);
}
KERNEL_WIDE sparse_ffn_q8_0(const __half* __restrict__ gate_scales, const int4* __restrict__ gate,
                            const __half* __restrict__ up_scales, const int4* __restrict__ up,
                            const __half* __restrict__ down_scales, const int4* __restrict__ down,
                            const int4* __restrict__ q, const float* __restrict__ d,
                            const int* __restrict__ sum, const int* __restrict__ ids,
                            const int* __restrict__ count, float* __restrict__ partial,
                            int n_rows, int n, int activation) {
    sparse_ffn(Q8_0(gate_scales, gate, n), Q8_0(up_scales, up, n), Q8_0(down_scales, down, n),
               Quantised{q, d, sum}, ids, count, partial, n_rows, activation);
}
KERNEL_WIDE sparse_ffn_q4_0(const __half* __restrict__ gate_scales, const uint4* __restrict__ gate,
                            const __half* __restrict__ up_scales, const uint4* __restrict__ up,
                            const __half* __restrict__ down_scales, const uint4* __restrict__ down,
                            const int4* __restrict__ q, const float* __restrict__ d,
                            const int* __restrict__ sum, const int* __restrict__ ids,
                            const int* __restrict__ count, float* __restrict__ partial,
                            int n_rows, int n, int activation) {
    sparse_ffn(Q4_0(gate_scales, gate, n), Q4_0(up_scales, up, n), Q4_0(down_scales, down, n),
               Quantised{q, d, sum}, ids, count, partial, n_rows, activation);
}
