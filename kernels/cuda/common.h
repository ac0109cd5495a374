// What every kernel file begins with. One text for NVRTC and for the emulated device.
//
// House rules: whole warps; no return before a barrier; no float atomics; sums in a fixed order, so
// that runs repeat bit for bit; fmaf where one rounding is meant, since both compilers are told not
// to contract; `KERNEL name(` or `KERNEL_WIDE name(`, written out or by a macro, is what signatures.py
// reads; shared memory in kernels and static device functions, never in templates, where g++ would not
// keep it apart. All files are one program, so names at the top are unique.
#pragma once
#ifndef HOTCOLD_EMULATED
#include <cuda_fp16.h>
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) T name[]
#define PRAGMA(text) _Pragma(#text)
#define UNROLL(n) PRAGMA(unroll n)
#else
#define UNROLL(n)
#endif

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
// A kernel that needs many registers: three blocks at once are enough, and it may not spill for more.
#define KERNEL_WIDE extern "C" __global__ void __launch_bounds__(256, 3)
#define ALL_LANES 0xffffffffu
constexpr int WARP = 32, BLOCK = 32;              // threads a warp; weights a quantised block

__device__ inline int lane() { return (int)threadIdx.x & (WARP - 1); }
__device__ inline int warp() { return (int)threadIdx.x / WARP; }
__device__ inline int n_warps() { return (int)blockDim.x / WARP; }
__device__ inline int thread_of_row() { return (int)(blockIdx.x * blockDim.x + threadIdx.x); }

// Every lane gets the sum over its warp.
__device__ inline float warp_sum(float v) {
    for (int d = WARP / 2; d; d /= 2) v += __shfl_xor_sync(ALL_LANES, v, d);
    return v;
}
__device__ inline int warp_sum(int v) {
    for (int d = WARP / 2; d; d /= 2) v += __shfl_xor_sync(ALL_LANES, v, d);
    return v;
}
// Shared memory for a number of each lane.
__device__ static inline float* floats_of_warp() {
    __shared__ float4 of_lanes[8][WARP / 4];      // of eight warps
    return (float*)of_lanes[warp()];
}
// Numbers of fours `first` to `end` - 1 onto a sum, in their order.
__device__ inline float onto(float sum, const float4* fours, int first, int end) {
    for (int i = first; i < end; i++) {
        float4 four = fours[i];
        sum += four.x, sum += four.y, sum += four.z, sum += four.w;
    }
    return sum;
}
// Every lane gets the sum of a warp's n numbers in their order, from 0 on, as one thread makes it that has them one
// after the other. The lane has number `at`, or none if it is not below n. Through shared memory: n / 4 loads and n
// sums in each lane.
__device__ inline float sum_in_order(float v, int at, int n) {
    float* own = floats_of_warp();
    if (at < n) own[at] = v;
    __syncwarp();
    float sum = onto(0.f, (const float4*)own, 0, n / 4);
    __syncwarp();                                 // they are about to be written again
    return sum;
}
__device__ inline float sum_of_lanes(float v) { return sum_in_order(v, lane(), WARP); }
// Every lane gets the sum over the lanes up to itself.
__device__ static inline int sum_up_to(int v) {
    for (int d = 1; d < WARP; d *= 2) {
        int below = __shfl_up_sync(ALL_LANES, v, d);
        if (lane() >= d) v += below;
    }
    return v;
}
__device__ inline float warp_max(float v) {
    for (int d = WARP / 2; d; d /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, d));
    return v;
}
// Every thread gets the sum over its block. It leaves without a barrier: one must lie between two calls.
__device__ static inline float block_sum(float v) {
    __shared__ float of_warp[WARP];
    v = warp_sum(v);
    if (lane() == 0) of_warp[warp()] = v;
    __syncthreads();
    return warp_sum(lane() < n_warps() ? of_warp[lane()] : 0.f);
}
