// One use at least of everything that intrinsics.h offers.
#include "async_copies.h"
#include "common.h"
#include "tensor_cores.h"

__device__ static int swapped_by_shared(int v) {  // shared memory in a device function
    __shared__ int box[64];
    box[threadIdx.x] = v;
    __syncthreads();
    int other = box[threadIdx.x ^ 1];
    __syncthreads();
    return other;
}

// out[16][64]: one row an operation, 64 threads.
KERNEL lanes(int* out) {
    int t = threadIdx.x, row = 0;
    out[64 * row++ + t] = __shfl_xor_sync(ALL_LANES, lane(), 5);
    out[64 * row++ + t] = __shfl_sync(ALL_LANES, lane(), lane() + 3);
    out[64 * row++ + t] = __shfl_down_sync(ALL_LANES, lane(), 4);
    out[64 * row++ + t] = __shfl_up_sync(ALL_LANES, lane(), 4);
    out[64 * row++ + t] = (int)(__shfl_sync(ALL_LANES, (long long)lane() << 40, 2, 8) >> 40);
    out[64 * row++ + t] = (int)__shfl_xor_sync(ALL_LANES, (float)lane(), 16, 16);
    out[64 * row++ + t] = (int)__shfl_down_sync(ALL_LANES, (double)lane(), 3, 8);
    out[64 * row++ + t] = __shfl_up_sync(ALL_LANES, lane(), 3, 8);
    out[64 * row++ + t] = swapped_by_shared(lane());
    out[64 * row++ + t] = (int)__ballot_sync(ALL_LANES, lane() % 2 == 0);
    out[64 * row++ + t] = __any_sync(ALL_LANES, t == 7);
    out[64 * row++ + t] = __all_sync(ALL_LANES, t != 40);
    if (lane() < 16) out[64 * row + t] = (int)__ballot_sync(0x0000ffffu, lane() % 4 == 0);
    else out[64 * row + t] = (int)__ballot_sync(0xffff0000u, lane() % 4 == 2);
    row++;
    __shared__ int pair[64];
    pair[t] = lane();
    __syncwarp();
    out[64 * row++ + t] = pair[t / 8 * 8 + (t + 1) % 8];
    out[64 * row++ + t] = __syncthreads_count(t < 3);
    out[64 * row++ + t] = 2 * (__syncthreads_or(t == 63) != 0) + (__syncthreads_and(t != 63) != 0);
}

// Every thread of every block has its place, and atomics count them.
KERNEL places(int* hits, int* place, unsigned long long* wide) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int id = block * (int)(blockDim.x * blockDim.y * blockDim.z) + thread;
    place[id] = id;
    atomicAdd(&hits[0], 1);
    atomicMax(&hits[1], id);
    atomicMin(&hits[2], id);
    atomicOr(&hits[3], 1 << (id & 15));
    if (id == 5) atomicExch(&hits[4], 77);
    atomicCAS(&hits[5], id, -id - 2);             // hits[5] begins as 9: only thread 9 meets it
    atomicAdd(&wide[0], 1ull << 33);
}

// The last block to count itself adds up what all have written; the counter begins anew.
KERNEL arrivals(unsigned* counter, int* parts, int* sum) {
    __shared__ unsigned before;
    if (threadIdx.x == 1) parts[blockIdx.x] = (int)blockIdx.x + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        before = atomicInc(counter, gridDim.x - 1);
        __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 2 && before == gridDim.x - 1)
        for (unsigned i = 0; i < gridDim.x; i++) sum[0] += parts[i];
}

// Integer and bit arithmetic, a row of 64 an operation.
KERNEL arithmetic(const int* a, const int* b, int* out) {
    int t = threadIdx.x, row = 0;
    out[64 * row++ + t] = __dp4a(a[t], b[t], 3);
    out[64 * row++ + t] = __ldg(a + t);
    out[64 * row++ + t] = __popc((unsigned)a[t]);
    out[64 * row++ + t] = __ffs(a[t]);
    out[64 * row++ + t] = __clz(a[t]);
    out[64 * row++ + t] = __float_as_int((float)a[t]);
    out[64 * row++ + t] = (int)__int_as_float(__float_as_int((float)(a[t] >> 8)));
    out[64 * row++ + t] = min(a[t], b[t]);
    out[64 * row++ + t] = max(a[t], b[t]);
    out[64 * row++ + t] = (int)__byte_perm((unsigned)a[t], (unsigned)b[t], (unsigned)(a[t] ^ b[t]) & 0x7777);
}

// Floats: what the emulated device takes from the C library.
KERNEL floats(__half* h, const float* x, float* out) {
    int t = threadIdx.x, row = 0;
    out[64 * row++ + t] = __half2float(h[t]) * 2.f;
    h[t] = __float2half(out[t]);
    out[64 * row++ + t] = (float)__float2int_rn(x[t]);
    out[64 * row++ + t] = fmaf(x[t], x[t], -1.f);
    out[64 * row++ + t] = x[t] * x[t] - 1.f;
    out[64 * row++ + t] = sqrtf(fabsf(x[t]));
    out[64 * row++ + t] = fmaxf(x[t], 1.f / 3.f);
    out[64 * row++ + t] = expf(x[t]);
}

// Vectors and dynamic shared memory: each thread turns one vector of each type round.
KERNEL vectors(const uint4* u, const float4* f, const int4* i, const float2* g, const int2* j,
               const uint2* v, unsigned* out) {
    DYNAMIC_SHARED(unsigned, words);
    int t = threadIdx.x;
    words[4 * t] = u[t].w, words[4 * t + 1] = u[t].z, words[4 * t + 2] = u[t].y, words[4 * t + 3] = u[t].x;
    __syncthreads();
    out[t] = words[4 * (31 - t)] + (unsigned)f[t].z + (unsigned)i[t].y + (unsigned)g[t].y + (unsigned)j[t].x
        + v[t].y;
}

// C += A B by tensor cores, 16 by 8: of rows and columns of n = 16 or 32 int8. One warp.
KERNEL products_of_tiles(const signed char* a, const signed char* b, int* c, int n) {
#ifdef TENSOR_CORES
    int g = lane() / 4, t = lane() % 4, own[4];
    unsigned of_a[4] = {}, of_b[2] = {};
    for (int part = 0; part < n / 16; part++) {
        of_a[2 * part] = ((const unsigned*)a)[g * n / 4 + 4 * part + t];
        of_a[2 * part + 1] = ((const unsigned*)a)[(g + 8) * n / 4 + 4 * part + t];
        of_b[part] = ((const unsigned*)b)[g * n / 4 + 4 * part + t];
    }
    for (int i = 0; i < 4; i++) own[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    if (n == 32) mma_s8(own, of_a, of_b);
    else {
        unsigned half_a[2] = {of_a[0], of_a[1]}, half_b[1] = {of_b[0]};
        mma_s8(own, half_a, half_b);
    }
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = own[i];
#endif
}

// The same of 16 F16, or BF16, a row and column.
template <class Mma>
__device__ inline void product_of_halves(const unsigned* a, const unsigned* b, float* c, Mma mma) {
    int g = lane() / 4, t = lane() % 4;
    float own[4];
    unsigned of_a[4], of_b[2];
    for (int part = 0; part < 2; part++) {
        of_a[2 * part] = a[8 * g + 4 * part + t], of_a[2 * part + 1] = a[8 * (g + 8) + 4 * part + t];
        of_b[part] = b[8 * g + 4 * part + t];
    }
    for (int i = 0; i < 4; i++) own[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    mma(own, of_a, of_b);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = own[i];
}
#ifdef TENSOR_CORES
struct MmaF16 {                                   // NVRTC takes no generic lambda for code of a device
    template <class C, class A, class B> __device__ inline void operator()(C& c, A& a, B& b) const { mma_f16(c, a, b); }
};
struct MmaBf16 {
    template <class C, class A, class B> __device__ inline void operator()(C& c, A& a, B& b) const { mma_bf16(c, a, b); }
};
#endif
KERNEL products_of_halves(const unsigned* a, const unsigned* b, float* c, int is_f16) {
#ifdef TENSOR_CORES
    if (is_f16) product_of_halves(a, b, c, MmaF16());
    else product_of_halves(a, b, c, MmaBf16());
#endif
}

// Two floats a word, rounded to F16. One warp.
KERNEL pairs_of_halves(const float2* x, unsigned* out) {
#ifdef TENSOR_CORES
    out[lane()] = two_f16(x[lane()].x, x[lane()].y);
#endif
}

// out[3][32]: what was copied, what lies there while the copy is under way, and a copy of nothing. One warp.
KERNEL copied(const int4* from, int* out, int reads_early) {
    DYNAMIC_SHARED(int4, room);
    int* words = (int*)(room + 32);
    copy_async<16>(room + lane(), from + lane(), true);
    commit_copies();
    copy_async<4>(words + lane(), from, lane() % 2 == 0);
    commit_copies();
    wait_for_copies<1>();
    out[lane()] = room[lane()].y;
    out[WARP + lane()] = reads_early ? words[lane()] : 0;
    wait_for_copies<0>();
    __syncwarp();
    out[2 * WARP + lane()] = words[(lane() + 1) % WARP];
}
