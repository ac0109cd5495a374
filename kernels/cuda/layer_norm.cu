// LayerNorm: y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, one block of threads a token.
#include "quantise.h"

// (x - near_mean - rest) * scale is the normed x. Differences from a first mean are summed, and their
// own mean taken off: what the first one lacks is lost neither from the mean nor from the variance.
struct Moments {
    float near_mean, rest, scale;
    __device__ float normed(float x) const { return (x - near_mean - rest) * scale; }
};

__device__ static inline Moments moments(const float* x, int n, float eps) {
    float sum = 0.f, differences = 0.f, squares = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    float near_mean = block_sum(sum) / (float)n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float difference = x[i] - near_mean;
        differences += difference, squares = fmaf(difference, difference, squares);
    }
    __syncthreads();                              // block_sum's array is about to be written again
    float rest = block_sum(differences) / (float)n;
    __syncthreads();
    float variance = fmaxf(block_sum(squares) / (float)n - rest * rest, 0.f);
    return {near_mean, rest, 1.f / sqrtf(variance + eps)};
}

// x[n_tokens][n], weight[n], bias[n] -> y[n_tokens][n].
KERNEL layer_norm(const float* __restrict__ x, const float* __restrict__ weight,
                  const float* __restrict__ bias, float* __restrict__ y, int n, float eps) {
    x += (size_t)blockIdx.x * n, y += (size_t)blockIdx.x * n;
    Moments m = moments(x, n, eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = m.normed(x[i]) * weight[i] + bias[i];
}

// The same, rounded as `quantise` would round y: the bits of layer_norm followed by quantise.
KERNEL layer_norm_quantised(const float* __restrict__ x, const float* __restrict__ weight,
                            const float* __restrict__ bias, signed char* __restrict__ q,
                            float* __restrict__ d, int* __restrict__ sum, int n, float eps) {
    x += (size_t)blockIdx.x * n;
    Moments m = moments(x, n, eps);
    int n_blocks = n / BLOCK, first = (int)blockIdx.x * n_blocks;
    for (int b = warp(); b < n_blocks; b += n_warps()) {
        int i = b * BLOCK + lane();
        quantise_block(m.normed(x[i]) * weight[i] + bias[i], first + b, q, d, sum);
    }
}
