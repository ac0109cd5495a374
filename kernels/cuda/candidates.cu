// The likeliest tokens of one row of logits, so that the whole row need not cross the bus.
#include "last_block.h"

constexpr int N_CANDIDATES = 64, N_KEYS = 2048, N_LISTS = N_KEYS / N_CANDIDATES;
typedef unsigned long long Key;

// A key that is larger the further in front a token is: by its logit, of equal ones by its number, the smaller first;
// NaN behind all numbers, and both zeros equal. No key is 0, which stands for no token.
__device__ static inline Key key_of(float v, int token) {
    unsigned bits = (unsigned)__float_as_int(v + 0.f);
    unsigned value = v != v ? 0u : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Key)value << 32 | ~(unsigned)token;
}
// Put two keys in order.
__device__ static inline void exchange(Key* keys, int a, int b, bool falling) {
    Key first = keys[a], second = keys[b];
    if ((first < second) == falling) keys[a] = second, keys[b] = first;
}
// Steps of a bitonic sort (Batcher, 1968) within lists of `size` keys, from distance `size` / 2 on down. Of n keys.
__device__ static inline void sort_bitonic(Key* keys, int n, int size) {
    for (int d = size / 2; d; d /= 2) {
        for (int i = (int)threadIdx.x; i < n / 2; i += (int)blockDim.x) {
            int at = 2 * i - (i & (d - 1));
            exchange(keys, at, at + d, size == N_CANDIDATES || !(at & size));
        }
        __syncthreads();                          // these keys are in order
    }
}
// Of falling lists, the first keys of all of them together: a falling list, in place of the first.
__device__ static inline void merge_lists(Key* keys) {
    for (int n = N_LISTS / 2; n; n /= 2) {
        for (int i = (int)threadIdx.x; i < n * N_CANDIDATES; i += (int)blockDim.x) {
            Key other = keys[(i / N_CANDIDATES + n) * N_CANDIDATES + N_CANDIDATES - 1 - i % N_CANDIDATES];
            if (other > keys[i]) keys[i] = other;
        }
        __syncthreads();                          // the larger half of each two lists is there
        sort_bitonic(keys, n * N_CANDIDATES, N_CANDIDATES);
    }
}

// logits[n] -> found: 1 where any of them is not finite (but -infinity where left_out), else 0; the 64 tokens with the
// largest, by falling logit, of equal ones by rising number; their logits as floats. Tokens that do not exist are -1.
// parts[blocks][65]: of each block its own ones as keys, and the 1 or 0. arrived: see last_block.h. grid: 2048 logits
// each. Dynamic shared: 16 KiB.
KERNEL candidates(const float* __restrict__ logits, unsigned long long* parts, unsigned* arrived, int* found,
                  int n, int left_out) {
    DYNAMIC_SHARED(unsigned long long, keys);
    int blocks = (int)gridDim.x, first = (int)blockIdx.x * N_KEYS, odd = 0;
    for (int i = (int)threadIdx.x; i < N_KEYS; i += (int)blockDim.x) {
        int token = first + i;
        float v = token < n ? logits[token] : 0.f;
        odd |= v - v != 0.f && !(left_out && v < 0.f);
        keys[i] = token < n ? key_of(v, token) : 0;
    }
    odd = __syncthreads_or(odd);                  // and the keys are there
    for (int size = 2; size <= N_CANDIDATES; size *= 2) sort_bitonic(keys, N_KEYS, size);
    merge_lists(keys);
    Key* own = parts + (size_t)blockIdx.x * (N_CANDIDATES + 1);
    if (threadIdx.x < N_CANDIDATES) own[threadIdx.x] = keys[threadIdx.x];
    if (threadIdx.x == 0) own[N_CANDIDATES] = odd ? 1 : 0;
    if (!comes_last(arrived, (unsigned)blocks)) return;
    // The first list holds the best so far, the others those of some blocks.
    if (threadIdx.x < N_CANDIDATES) keys[threadIdx.x] = 0;
    for (int block = 0; block < blocks; block += N_LISTS - 1) {
        for (int i = (int)threadIdx.x; i < N_KEYS - N_CANDIDATES; i += (int)blockDim.x) {
            int of = block + i / N_CANDIDATES;
            const Key* others = parts + (size_t)of * (N_CANDIDATES + 1);
            keys[N_CANDIDATES + i] = of < blocks ? others[i % N_CANDIDATES] : 0;
            if (of < blocks && i % N_CANDIDATES == 0) odd |= (int)others[N_CANDIDATES];
        }
        __syncthreads();                          // all lists are there
        merge_lists(keys);
    }
    odd = __syncthreads_or(odd);
    if (threadIdx.x == 0) found[0] = odd ? 1 : 0;
    if (threadIdx.x < N_CANDIDATES) {
        int token = keys[threadIdx.x] ? (int)~(unsigned)keys[threadIdx.x] : -1;
        found[1 + threadIdx.x] = token;
        ((float*)found)[1 + N_CANDIDATES + threadIdx.x] = token < 0 ? 0.f : logits[token];
    }
}
