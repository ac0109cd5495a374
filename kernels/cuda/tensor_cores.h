// Products by tensor cores, as PTX's mma.sync has them: from sm_80 on, and on the emulated device. Where they are,
// TENSOR_CORES is defined; a program that defines WITHOUT_TENSOR_CORES has none, as cards below.
//
// A warp multiplies A, 16 rows of 16 or 32 int8, by B, 8 columns of as many, and adds to C. All lanes come; lane
// 4 g + t has, word by word, of A: numbers 4 t to 4 t + 3 of row g, those of row g + 8, and for 32 both again 16
// numbers on; of B: the same numbers of column g; of C: (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
// Of 16 F16 or BF16 a word has two: numbers 2 t and 2 t + 1 of row g, of row g + 8, and both again 8 numbers on. Their
// products are exact; in which order a card adds the sixteen, and how it rounds, is not published.
#pragma once
#include "common.h"

#if defined WITHOUT_TENSOR_CORES
#elif defined HOTCOLD_EMULATED
#define TENSOR_CORES
#elif defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 800
#define TENSOR_CORES
__device__ inline void mma_s8(int (&c)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
__device__ inline void mma_s8(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#define MMA_OF_HALVES(TYPE) \
__device__ inline void mma_##TYPE(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #TYPE "." #TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, " \
                 "{%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
}
MMA_OF_HALVES(f16) MMA_OF_HALVES(bf16)
// Two floats in a word, rounded to F16, the first in its low half.
__device__ inline unsigned two_f16(float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
#endif
