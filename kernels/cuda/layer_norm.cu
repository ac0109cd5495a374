// LayerNorm: y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, one block of threads a token.
#include "quantise.h"
#include "row_walk.h"

// (x - near_mean - rest) * scale is the normed x. Differences from a first mean are summed, and their
// own mean taken off: what the first one lacks is lost neither from the mean nor from the variance.
struct Moments {
    float near_mean, rest, scale;
    __device__ float normed(float x) const { return (x - near_mean - rest) * scale; }
};

__device__ static inline Moments moments(const float* x, int n, float eps) {
    float sum = 0.f, differences = 0.f, squares = 0.f;
    walk_row(x, n, [&](float v) { sum += v; });
    float near_mean = block_sum(sum) / (float)n;
    walk_row(x, n, [&](float v) {
        float difference = v - near_mean;
        differences += difference, squares = fmaf(difference, difference, squares);
    });
    __syncthreads();                              // block_sum's array is about to be written again
    float rest = block_sum(differences) / (float)n;
    __syncthreads();
    float variance = fmaxf(block_sum(squares) / (float)n - rest * rest, 0.f);
    return {near_mean, rest, 1.f / sqrtf(variance + eps)};
}

// x[n_tokens][n], weight[n], bias[n] -> y[n_tokens][n].
KERNEL layer_norm(const float4* __restrict__ row, const float* __restrict__ weight,
                  const float* __restrict__ bias, float* __restrict__ y, int n, float eps) {
    const float* x = (const float*)row + (size_t)blockIdx.x * n;
    y += (size_t)blockIdx.x * n;
    Moments m = moments(x, n, eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = m.normed(x[i]) * weight[i] + bias[i];
}

// The same, rounded as `quantise` would round y: the bits of layer_norm followed by quantise. With rounds_x, x as it is
// is rounded too, to qx, dx and sum_x.
KERNEL layer_norm_quantised(const float4* __restrict__ x, const float4* __restrict__ weight,
                            const float4* __restrict__ bias, signed char* __restrict__ q,
                            float* __restrict__ d, int* __restrict__ sum, signed char* __restrict__ qx,
                            float* __restrict__ dx, int* __restrict__ sum_x, int n, float eps, int rounds_x) {
    size_t first = (size_t)blockIdx.x * n;
    x += first / IN_A_LANE;
    Moments m = moments((const float*)x, n, eps);
    for (int i = warp() * AT_ONCE_ROUNDED; i < n; i += n_warps() * AT_ONCE_ROUNDED) {
        int at = i + lane() * IN_A_LANE, four = min(at, n - IN_A_LANE) / IN_A_LANE;
        float4 v = x[four], w = weight[four], b = bias[four];
        float4 y = {m.normed(v.x) * w.x + b.x, m.normed(v.y) * w.y + b.y, m.normed(v.z) * w.z + b.z,
                    m.normed(v.w) * w.w + b.w};
        quantise_four(y, first + at, at < n, q, d, sum);
        if (rounds_x) quantise_four(v, first + at, at < n, qx, dx, sum_x);
    }
}
