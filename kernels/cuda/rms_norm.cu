// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight, one block of threads a token.
#include "quantise.h"
#include "row_walk.h"

__device__ inline float inverse_rms(const float* x, int n, float eps) {
    float s = 0.f;
    walk_row(x, n, [&](float v) { s = fmaf(v, v, s); });
    return 1.f / sqrtf(block_sum(s) / (float)n + eps);
}

// x[n_tokens][n], weight[n] -> y[n_tokens][n].
KERNEL rms_norm(const float4* __restrict__ row, const float* __restrict__ weight, float* __restrict__ y,
                int n, float eps) {
    const float* x = (const float*)row + (size_t)blockIdx.x * n;
    y += (size_t)blockIdx.x * n;
    float r = inverse_rms(x, n, eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i] * r * weight[i];
}

// The same, rounded as `quantise` would round y: the bits of rms_norm followed by quantise. With rounds_x, x as it is
// is rounded too, to qx, dx and sum_x.
KERNEL rms_norm_quantised(const float4* __restrict__ x, const float4* __restrict__ weight,
                          signed char* __restrict__ q, float* __restrict__ d, int* __restrict__ sum,
                          signed char* __restrict__ qx, float* __restrict__ dx, int* __restrict__ sum_x,
                          int n, float eps, int rounds_x) {
    size_t first = (size_t)blockIdx.x * n;
    x += first / IN_A_LANE;
    float r = inverse_rms((const float*)x, n, eps);
    for (int i = warp() * AT_ONCE_ROUNDED; i < n; i += n_warps() * AT_ONCE_ROUNDED) {
        int at = i + lane() * IN_A_LANE, four = min(at, n - IN_A_LANE) / IN_A_LANE;
        float4 v = x[four], w = weight[four];
        quantise_four({v.x * r * w.x, v.y * r * w.y, v.z * r * w.z, v.w * r * w.w}, first + at, at < n, q, d, sum);
        if (rounds_x) quantise_four(v, first + at, at < n, qx, dx, sum_x);
    }
}
