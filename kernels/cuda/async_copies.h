// Copies from the card's memory into shared memory that go on while the thread computes, as PTX's cp.async has them:
// from sm_80 on, and on the emulated device. Below that a copy is a load and a store, and nothing is left to be waited
// for.
//
//   copy_async<16>(to, from, is_there)   16 bytes, or 4, both sides aligned to as many; zeros if is_there is false, and
//                                        then nothing is read
//   commit_copies()                      the copies of this thread since the last call are a group
//   wait_for_copies<N>()                 all groups of this thread but the last N are there
//
// Other threads see the bytes behind the barrier that follows the wait.
#pragma once
#include "common.h"

#if defined HOTCOLD_EMULATED
#elif defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 800
template <int K> __device__ inline void copy_async(void* to, const void* from, bool is_there) {
    unsigned shared = (unsigned)__cvta_generic_to_shared(to), size = is_there ? K : 0;
    if constexpr (K == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared), "l"(from), "r"(size) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" :: "r"(shared), "l"(from), "r"(size) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int K> __device__ inline void wait_for_copies() { asm volatile("cp.async.wait_group %0;" :: "n"(K) : "memory"); }
#else
template <int K> __device__ inline void copy_async(void* to, const void* from, bool is_there) {
    if constexpr (K == 16) *(int4*)to = is_there ? *(const int4*)from : int4{0, 0, 0, 0};
    else *(int*)to = is_there ? *(const int*)from : 0;
}
__device__ inline void commit_copies() {}
template <int K> __device__ inline void wait_for_copies() {}
#endif
