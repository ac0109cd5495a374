// What device code sees of CUDA on the emulated device. An operation that is not here does not
// compile, so the emulated device claims nothing that tests/kernels/cuda/emulator/intrinsics.cu leaves out.
#pragma once
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("cuda_shared"), aligned(16)))
#define DYNAMIC_SHARED(T, name) T* name = (T*)emulator::dynamic_shared

struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
typedef _Float16 __half;

#define threadIdx (emulator::self->place)
#define blockIdx (emulator::block_place)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

// ---- barriers and warp operations --------------------------------------------------------------

inline void __syncthreads(CALLER) { emulator::barrier(WHERE); }
inline int __syncthreads_count(int p, CALLER) { return emulator::barrier(WHERE, p); }
inline int __syncthreads_or(int p, CALLER) { return emulator::barrier(WHERE, p) > 0; }
inline int __syncthreads_and(int p, CALLER) { return emulator::barrier(WHERE, !p) == 0; }
inline void __syncwarp(unsigned mask = ~0u, CALLER) { emulator::ballot(mask, 0, WHERE, true); }
inline unsigned __ballot_sync(unsigned mask, int p, CALLER) { return emulator::ballot(mask, p, WHERE); }
inline int __any_sync(unsigned mask, int p, CALLER) { return emulator::ballot(mask, p, WHERE) != 0; }
inline int __all_sync(unsigned mask, int p, CALLER) { return emulator::ballot(mask, p, WHERE) == mask; }

// A source after the own group of `width` lanes, or with _up before it, is the lane itself. With _xor
// earlier groups may be read.
template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, CALLER) {
    int lane = emulator::self->number & 31;
    return emulator::shuffle(mask, v, (lane & -width) | (source & (width - 1)), WHERE);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, CALLER) {
    int lane = emulator::self->number & 31, source = lane ^ bits;
    return emulator::shuffle(mask, v, source < (lane & -width) + width ? source : lane, WHERE);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, CALLER) {
    int lane = emulator::self->number & 31, source = lane + (int)by;
    return emulator::shuffle(mask, v, source < (lane & -width) + width ? source : lane, WHERE);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, CALLER) {
    int lane = emulator::self->number & 31, source = lane - (int)by;
    return emulator::shuffle(mask, v, source >= (lane & -width) ? source : lane, WHERE);
}

#ifdef EMULATOR_RACES
inline void __threadfence() { emulator::fence(); }
#else
inline void __threadfence() {}                    // blocks run one after the other
#endif

// ---- integer atomics ---------------------------------------------------------------------------
// Fibers never switch inside these. There are no float atomics: their sums depend on the order.

#ifdef EMULATOR_RACES
#define ATOMIC_ACCESS(p) emulator::touch(p, sizeof *(p), emulator::ATOMIC, __builtin_return_address(0))
#define ATOMIC_OPERATION template <class T> __attribute__((noinline)) UNCHECKED T
#else
#define ATOMIC_ACCESS(p) static_assert(std::is_integral_v<T>, "float atomics are not deterministic")
#define ATOMIC_OPERATION template <class T> inline T
#endif
ATOMIC_OPERATION atomicAdd(T* p, T v) { ATOMIC_ACCESS(p); T old = *p; *p = (T)(old + v); return old; }
ATOMIC_OPERATION atomicMax(T* p, T v) { ATOMIC_ACCESS(p); T old = *p; *p = old > v ? old : v; return old; }
ATOMIC_OPERATION atomicMin(T* p, T v) { ATOMIC_ACCESS(p); T old = *p; *p = old < v ? old : v; return old; }
ATOMIC_OPERATION atomicOr(T* p, T v) { ATOMIC_ACCESS(p); T old = *p; *p = (T)(old | v); return old; }
ATOMIC_OPERATION atomicExch(T* p, T v) { ATOMIC_ACCESS(p); T old = *p; *p = v; return old; }
ATOMIC_OPERATION atomicInc(T* p, T last) { ATOMIC_ACCESS(p); T old = *p; *p = old >= last ? 0 : old + 1; return old; }
ATOMIC_OPERATION atomicCAS(T* p, T want, T v) {
    ATOMIC_ACCESS(p);
    T old = *p;
    *p = old == want ? v : old;
    return old;
}

// ---- asynchronous copies: kernels/cuda/async_copies.h says what they promise ------------------

#define COPIES __attribute__((noinline)) UNCHECKED inline void
template <int K> COPIES copy_async(void* to, const void* from, bool is_there, CALLER) {
    static_assert(K == 4 || K == 16);
    emulator::begin_copy((char*)to, (const char*)from, K, is_there, __builtin_return_address(0), WHERE);
}
COPIES commit_copies(CALLER) { emulator::commit_copies_of_thread(WHERE); }
template <int K> COPIES wait_for_copies() {
    emulator::wait_for_copies_of_thread(K, __builtin_return_address(0));
}

// ---- arithmetic --------------------------------------------------------------------------------

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += (int8_t)(a >> i) * (int8_t)(b >> i);
    return c;
}
// Byte i of the answer is the byte of the eight of a and b that the low three bits of nibble i of `select` name.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= (unsigned)(bytes >> 8 * (select >> 4 * i & 7) & 255) << 8 * i;
    return out;
}
template <class T> T __ldg(const T* p) { return *p; }
inline float __half2float(__half h) { return (float)h; }
inline __half __float2half(float f) { return (_Float16)f; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __float2int_rn(float x) { return x != x ? 0 : (int)rintf(x); }
inline float __int_as_float(int x) { float f; memcpy(&f, &x, 4); return f; }
inline int __float_as_int(float f) { int x; memcpy(&x, &f, 4); return x; }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

// ---- tensor cores: kernels/cuda/tensor_cores.h says which lane has what ------------------------

template <int K, class Number> struct Fragments { unsigned a[2 * K], b[K]; Number c[4]; };

// C += A B of four times K words a row, all lanes together. add(sum, word of A, word of B): their numbers' products
// added.
template <int K, class Number, class Add>
void multiply_fragments(Number (&c)[4], const unsigned (&a)[2 * K], const unsigned (&b)[K], Add, emulator::Where where) {
    Fragments<K, Number> own;
    memcpy(own.a, a, sizeof a), memcpy(own.b, b, sizeof b), memcpy(own.c, c, sizeof c);
    emulator::meet(~0u, (uint64_t)&own, 0, where, [](emulator::Warp& w, int lane) {
        auto of = [&w](int number) { return (Fragments<K, Number>*)w.value[number]; };
        for (int i = 0; i < 4; i++) {
            int row = lane / 4, column = 2 * (lane % 4) + i % 2;
            auto sum = Add::begin(of(lane)->c[i]);
            for (int word = 0; word < 4 * K; word++) {
                int t = word % 4, part = word / 4;
                sum = Add::add(sum, of(4 * row + t)->a[2 * part + i / 2], of(4 * column + t)->b[part]);
            }
            of(lane)->c[i] = (Number)sum;
        }
        return 0;
    });
    memcpy(c, own.c, sizeof c);
}
struct AddBytes {
    static int begin(int c) { return c; }
    static int add(int sum, unsigned a, unsigned b) { return __dp4a((int)a, (int)b, sum); }
};
// Halves of words as floats, in their order.
typedef float Eight __attribute__((vector_size(32)));
struct WordsOfF16 {
    static Eight floats(const unsigned* words) {
        typedef short Halves __attribute__((vector_size(16)));
        Halves halves;
        memcpy(&halves, words, sizeof halves);
        return __builtin_ia32_vcvtph2ps256(halves);
    }
};
struct WordsOfBf16 {
    static Eight floats(const unsigned* words) {
        Eight all;
        for (int i = 0; i < 8; i++) all[i] = __int_as_float((int)(i % 2 ? words[i / 2] & 0xffff0000 : words[i / 2] << 16));
        return all;
    }
};

template <int K> void mma_s8(int (&c)[4], const unsigned (&a)[2 * K], const unsigned (&b)[K], CALLER) {
    multiply_fragments<K>(c, a, b, AddBytes{}, WHERE);
}

// How a card adds the sixteen products of floats is not published. Here they are added in float64, in ascending order,
// and with C rounded once: a row of eight sums at a time, by whichever lane comes last.
typedef double Row __attribute__((vector_size(64)));
template <class Words> UNCHECKED inline void multiply_halves(emulator::Warp& w) {
    double a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        auto own = (const Fragments<2, float>*)w.value[lane];
        int g = lane / 4, first = 2 * (lane % 4);
        unsigned words[4] = {own->b[0], own->b[1]};
        Row of_a = __builtin_convertvector(Words::floats(own->a), Row), of_b = __builtin_convertvector(Words::floats(words), Row);
        for (int k = 0; k < 2; k++) {             // of a row two numbers, and eight further on two
            memcpy(&a[g][first + 8 * k], (const double*)&of_a + 4 * k, 16);
            memcpy(&a[g + 8][first + 8 * k], (const double*)&of_a + 4 * k + 2, 16);
            for (int i = 0; i < 2; i++) b[first + 8 * k + i][g] = of_b[2 * k + i];
        }
    }
    for (int row = 0; row < 16; row++) {
        Row sum, column;
        for (int i = 0; i < 8; i++)
            sum[i] = ((Fragments<2, float>*)w.value[4 * (row % 8) + i / 2])->c[row / 8 * 2 + i % 2];
        for (int k = 0; k < 16; k++) memcpy(&column, b[k], sizeof column), sum += a[row][k] * column;
        for (int i = 0; i < 8; i++)
            ((Fragments<2, float>*)w.value[4 * (row % 8) + i / 2])->c[row / 8 * 2 + i % 2] = (float)sum[i];
    }
}
template <class Words>
void mma_of_halves(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], emulator::Where where) {
    Fragments<2, float> own;
    memcpy(own.a, a, sizeof a), memcpy(own.b, b, sizeof b), memcpy(own.c, c, sizeof c);
    emulator::meet(~0u, (uint64_t)&own, 0, where, [](emulator::Warp& w, int lane) {
        if (lane == 0) multiply_halves<Words>(w);  // the last that is looked at, so all are here
        return 0;
    });
    memcpy(c, own.c, sizeof c);
}
inline void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], CALLER) {
    mma_of_halves<WordsOfF16>(c, a, b, WHERE);
}
inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], CALLER) {
    mma_of_halves<WordsOfBf16>(c, a, b, WHERE);
}
inline unsigned two_f16(float low, float high) {
    __half two[2] = {(__half)low, (__half)high};
    unsigned word;
    memcpy(&word, two, 4);
    return word;
}
