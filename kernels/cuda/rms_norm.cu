// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight, one block of threads a token.
#include "quantise.h"

__device__ inline float inverse_rms(const float* x, int n, float eps) {
    float s = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) s = fmaf(x[i], x[i], s);
    return 1.f / sqrtf(block_sum(s) / (float)n + eps);
}

// x[n_tokens][n], weight[n] -> y[n_tokens][n].
KERNEL rms_norm(const float* __restrict__ x, const float* __restrict__ weight, float* __restrict__ y,
                int n, float eps) {
    x += (size_t)blockIdx.x * n, y += (size_t)blockIdx.x * n;
    float r = inverse_rms(x, n, eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i] * r * weight[i];
}

// The same, rounded as `quantise` would round y: the bits of rms_norm followed by quantise.
KERNEL rms_norm_quantised(const float* __restrict__ x, const float* __restrict__ weight,
                          signed char* __restrict__ q, float* __restrict__ d, int* __restrict__ sum,
                          int n, float eps) {
    x += (size_t)blockIdx.x * n;
    float r = inverse_rms(x, n, eps);
    int n_blocks = n / BLOCK, first = (int)blockIdx.x * n_blocks;
    for (int b = warp(); b < n_blocks; b += n_warps()) {
        int i = b * BLOCK + lane();
        quantise_block(x[i] * r * weight[i], first + b, q, d, sum);
    }
}
