// Kernels for the tests of the seam.
#include "common.h"

// y[i] = x[i] * by, for one block.
KERNEL scale(const float* __restrict__ x, float* __restrict__ y, float by, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i] * by;
}

// One parameter of every scalar type: out[k] is parameter k.
KERNEL widths(double* out, float a, int b, unsigned c, unsigned char d, signed char e,
              unsigned short f, short g, __half h, long long i, unsigned long long j, double k, bool l) {
    const double all[] = {a, (double)b, (double)c, (double)d, (double)e, (double)f, (double)g,
                          (double)__half2float(h), (double)i, (double)j, k, (double)l};
    if (threadIdx.x < 12) out[threadIdx.x] = all[threadIdx.x];
}

// Reads x[at], which may lie anywhere, and y[0].
KERNEL peek(const float* __restrict__ x, float* __restrict__ y, int at) {
    if (threadIdx.x == 3) y[0] = x[at];
}

// A vector pointer, and dynamic shared memory that nobody wrote.
KERNEL untouched(const uint4* __restrict__ x, unsigned* __restrict__ out) {
    DYNAMIC_SHARED(unsigned, words);
    if (threadIdx.x == 0) out[0] = x[0].y, out[1] = words[0];
}
