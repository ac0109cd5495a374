// Kernels that break a rule: what the emulated device must name. Each has its fault on a line that
// says "here".
#include "async_copies.h"
#include "common.h"

KERNEL returns_before_barrier(int* out) {
    if (warp() == 1) return;
    __syncthreads();                              // here
    out[threadIdx.x] = 1;
}
KERNEL waits_at_two_barriers(int* out) {
    if (warp() == 0) __syncthreads();             // here
    else __syncthreads();                         // and here
    out[threadIdx.x] = 1;
}
KERNEL leaves_lanes_out(int* out) {
    if (lane() < 31) out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1, 1);  // here
}
KERNEL is_not_in_its_mask(int* out) {
    out[threadIdx.x] = __any_sync(0x7fffffffu, 1);  // here
}
KERNEL reads_a_lane_outside_the_mask(int* out) {
    if (lane() < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 20);  // here
}
KERNEL meets_in_two_places(int* out) {
    if (lane() < 16) out[threadIdx.x] = __any_sync(ALL_LANES, 1);         // here
    else out[threadIdx.x] = __any_sync(ALL_LANES, 0);                     // and here
}
KERNEL indexes_outside_an_array(int* out) {
    __shared__ int box[64];
    box[threadIdx.x + 1] = 1;                     // here
    __syncthreads();
    out[threadIdx.x] = box[threadIdx.x];
}
KERNEL shifts_too_far(int* out) {
    out[threadIdx.x] = 1 << (lane() + 1);         // here
}
KERNEL divides_by_zero(int* out) {
    out[threadIdx.x] = 100 / (lane() - 4);        // here
}
KERNEL loads_askew(int* out) {
    out[threadIdx.x] = ((const int4*)(out + 1))->y;  // here
}
KERNEL writes_after_the_end(int* out) {
    out[threadIdx.x + 1] = 1;                     // here
}
KERNEL writes_before_the_start(int* out) {
    out[(int)threadIdx.x - 1] = 1;                // here
}
KERNEL leaves_dynamic_shared(int* out) {
    DYNAMIC_SHARED(int, words);
    words[threadIdx.x + 1] = 1;                   // here
    out[threadIdx.x] = 1;
}
KERNEL copies_askew(int* out) {
    __shared__ int box[64];
    copy_async<16>(box, out + 1, true);           // here
}
KERNEL copies_into_its_own_memory(int* out) {
    int own;
    copy_async<4>(&own, out, true);               // here
}
KERNEL returns_with_a_copy_under_way(int* out) {
    __shared__ int box[64];
    copy_async<4>(box + threadIdx.x, out, true);  // here
    commit_copies();
}
KERNEL reads_nowhere(int* out) {
    out[threadIdx.x] = *(const int*)8;            // here
}
__device__ int deeper(volatile int* p, int n) { return n ? deeper(p, n - 1) + p[0] : p[1]; }
KERNEL fills_its_stack(int* out) {
    volatile int there[1024] = {};
    out[threadIdx.x] = deeper(there, 1 << 20);
}
