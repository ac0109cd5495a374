// Runs a CUDA source on the CPU with the semantics of a block: for checking, not for speed.
//
// Every CUDA thread of a block is a fiber with a stack of its own; fibers switch only at barriers
// and warp operations. Blocks run one after the other on the thread that calls emulator_launch.
//
// `order` says in which order ready threads, and blocks, run: 0 forward, 1 backward, anything else
// seeds a shuffle that is drawn anew at every switch.
//
// Reported as an error, never a crash: an access outside a buffer (guard pages), undefined
// behaviour (traps of the checked build), a barrier or warp operation that not every thread
// reaches, a shuffle from a lane that takes no part. Shared memory is filled with 0xFF before every
// block: NaN as a float, -1 as an int.
//
// This file schedules; races.h finds races; copies.h has asynchronous copies; intrinsics.h is what device code sees.
#pragma once
#ifndef __x86_64__
#error "the emulated device switches fibers in x86-64 assembly"
#endif
#define HOTCOLD_EMULATED 1
#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>
#include <sys/mman.h>
#include <ucontext.h>

struct dim3 { unsigned x = 1, y = 1, z = 1; };

namespace emulator {
constexpr int MAX_THREADS = 256;                  // of a block, as signatures.py has it
constexpr size_t PAGE = 4096, STACK = 16 * PAGE;  // bytes a fiber, the lowest page of them a guard

struct Where { const char* file; int line; };     // of a call in device code
#define CALLER const char* file = __builtin_FILE(), int line = __builtin_LINE()  // default arguments
#define WHERE emulator::Where{file, line}
inline bool operator!=(Where a, Where b) {
    return a.line != b.line || (a.file != b.file && strcmp(a.file, b.file));
}
inline const char* text(Where w) {                // two of them may stand in one message
    static char out[2][128];
    static int which;
    char* place = out[which ^= 1];
    snprintf(place, sizeof out[0], "%s:%d", w.file, w.line);
    return place;
}

struct Fiber {
    void* stack_pointer;                          // saved while another fiber runs
    dim3 place;                                   // threadIdx
    int number;                                   // within the block, x fastest
};
struct Warp {                                     // what the lanes hand in, and what they get back
    uint64_t value[32], result[32];
    uint32_t mask[32], arrived, epoch;
    int source[32];
    const char* file[32];
    int line[32];
    Where where(int lane) const { return {file[lane], line[lane]}; }
};

// The block that runs. One launch at a time in a process; the caller holds a lock.
inline Fiber fibers[MAX_THREADS], outside;        // outside: whoever called run_block
inline Fiber *self = &outside, *ready[MAX_THREADS], *waiting[MAX_THREADS];  // ready is a ring
inline unsigned first_ready, n_ready, n_waiting, n_returned, n_threads;
inline Warp warps[MAX_THREADS / 32];
inline Where barrier_where;
inline int order, votes, votes_of_all;
inline uint64_t random_state;
inline dim3 block_place, block_size, grid_size;
inline char *dynamic_shared, *stacks;
inline size_t dynamic_size;
inline unsigned launches, block_number, barriers; // barriers passed in this block
inline void (*entry)(void**);
inline void** entry_arguments;
inline const char* kernel_name;
inline char* message;                             // where the launch in progress writes its error
inline size_t message_size;
inline bool failed;
inline thread_local bool launching;

// ---- fibers ------------------------------------------------------------------------------------

extern "C" void emulator_switch(void** save, void* to);
asm(R"(.text
.type emulator_switch,@function
emulator_switch:
 push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
 mov %rsp,(%rdi)
 mov %rsi,%rsp
 pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
 pop %rcx
 jmp *%rcx
.size emulator_switch,.-emulator_switch)");

__attribute__((always_inline)) inline void jump(Fiber* from, Fiber* to) {
    self = to;
    emulator_switch(&from->stack_pointer, to->stack_pointer);
    asm volatile("" ::: "memory");                // another fiber may have written shared memory
}

[[noreturn]] inline void fail(const char* format, ...) {
    Fiber* f = self;
    int n = snprintf(message, message_size, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u): ",
                     kernel_name, block_place.x, block_place.y, block_place.z, f->place.x,
                     f->place.y, f->place.z);
    va_list values;
    va_start(values, format);
    vsnprintf(message + n, message_size - n, format, values);
    va_end(values);
    failed = true;
    for (;;) jump(f, &outside);
}

inline unsigned random_below(unsigned n) {        // xorshift
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (unsigned)((random_state >> 32) * n >> 32);
}
inline void make_ready(Fiber* f) { ready[(first_ready + n_ready++) % MAX_THREADS] = f; }
// To the front: forward order takes a warp as far as it goes, and 32 stacks stay in the cache.
inline void make_ready_next(Fiber* f) {
    first_ready = (first_ready + MAX_THREADS - 1) % MAX_THREADS, n_ready++;
    ready[first_ready] = f;
}
inline Fiber* next_ready() {
    if (order == 1) return ready[(first_ready + --n_ready) % MAX_THREADS];
    if (order > 1)
        std::swap(ready[first_ready], ready[(first_ready + random_below(n_ready)) % MAX_THREADS]);
    Fiber* f = ready[first_ready];
    first_ready = (first_ready + 1) % MAX_THREADS, n_ready--;
    return f;
}
[[noreturn]] inline void fail_stuck() {           // nobody can run
    if (n_waiting && n_waiting + n_returned == n_threads)
        fail("__syncthreads at %s: %u threads wait there, %u have already returned",
             text(barrier_where), n_waiting, n_returned);
    Warp* stuck = warps;
    while (!stuck->arrived) stuck++;
    int lane = __builtin_ctz(stuck->arrived);
    fail("deadlock in the warp operation at %s: lanes %08x came, lanes %08x are named in its mask",
         text(stuck->where(lane)), stuck->arrived, stuck->mask[lane]);
}
// Leaves the running fiber; it goes on when someone makes it ready. Inlined: after a switch the
// processor guesses every return wrong.
__attribute__((always_inline)) inline void rest() {
    if (!n_ready) fail_stuck();
    Fiber* next = next_ready();
    if (next != self) jump(self, next);
}

// ---- barrier and warp operations ---------------------------------------------------------------

// Every thread of the block meets here; how many of them voted.
inline int barrier(Where where, int vote = 0) {
    if (n_waiting && where != barrier_where)
        fail("__syncthreads at %s while others wait at %s", text(where), text(barrier_where));
    barrier_where = where, votes += vote != 0;
    if (n_waiting + 1 < n_threads) {
        waiting[n_waiting++] = self;
        rest();
    } else {
        for (unsigned i = 0; i < n_waiting; i++) make_ready(waiting[i]);
        barriers++, n_waiting = 0, votes_of_all = votes, votes = 0;
        if (order) make_ready(self), rest();
    }
    return votes_of_all;
}

// All lanes of mask meet here; the last one works out every lane's result as result_of(warp, lane).
// orders_memory: whether accesses before and after are ordered, as only __syncwarp promises.
template <class ResultOf>
inline uint64_t meet(unsigned mask, uint64_t value, int source, Where where, ResultOf result_of,
                     bool orders_memory = false) {
    Fiber* f = self;
    int lane = f->number & 31;
    Warp& w = warps[f->number >> 5];
    if (!(mask >> lane & 1)) fail("%s: lane %d is not in its own mask %08x", text(where), lane, mask);
    w.value[lane] = value, w.source[lane] = source, w.mask[lane] = mask;
    w.file[lane] = where.file, w.line[lane] = where.line;
    w.arrived |= 1u << lane;
    if ((w.arrived & mask) != mask) {
        rest();
        return w.result[lane];
    }
    for (int k = 31; k >= 0; k--) {
        if (!(mask >> k & 1)) continue;
        if (w.mask[k] != mask || w.line[k] != where.line)  // comparing files too costs half the speed
            fail("%s (mask %08x): lane %d is at %s (mask %08x)", text(where), mask, k, text(w.where(k)),
                 w.mask[k]);
        w.result[k] = result_of(w, k);
        if (k != lane) order ? make_ready(f - lane + k) : make_ready_next(f - lane + k);
    }
    w.arrived &= ~mask, w.epoch += orders_memory;
    if (order) make_ready(f), rest();
    return w.result[lane];
}
template <class T> inline T shuffle(unsigned mask, T value, int source, Where where) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = meet(mask, bits, source, where, [mask, where](Warp& w, int k) {
        if (!(mask >> w.source[k] & 1))
            fail("%s: shuffle from lane %d, which is not in the mask %08x", text(where), w.source[k], mask);
        return w.value[w.source[k]];
    });
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned ballot(unsigned mask, bool vote, Where where, bool orders_memory = false) {
    return (unsigned)meet(mask, vote, 0, where, [mask](Warp& w, int) {
        uint64_t bits = 0;
        for (int i = 0; i < 32; i++) bits |= (mask >> i & 1 && w.value[i]) ? 1ull << i : 0;
        return bits;
    }, orders_memory);
}

// ---- a launch ----------------------------------------------------------------------------------

inline void check_copies_are_over(), forget_copies();  // copies.h
inline void fiber_main() {
    for (;;) {
        entry(entry_arguments);
        check_copies_are_over();
        Fiber* f = self;
        if (++n_returned == n_threads) jump(f, &outside);
        else rest();
    }
}
// One page that says whose fibers stand on the stacks, and the stacks: one for all libraries of the process, since
// each has hundreds of guard pages, and a process has a limit of maps.
inline char* make_stacks() {
    char* shared = (char*)mmap(nullptr, PAGE + STACK * MAX_THREADS, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int i = 0; i < MAX_THREADS; i++) mprotect(shared + PAGE + i * STACK, PAGE, PROT_NONE);
    return shared;
}
inline void make_fibers() {
    for (int i = 0; i < MAX_THREADS; i++) {
        // Staggered, or all stacks would share the same few cache lines.
        void** top = (void**)(stacks + (i + 1) * STACK - i % 32 * 320) - 2;
        *top = (void*)fiber_main;                 // emulator_switch pops six registers, then jumps here
        fibers[i].number = i, fibers[i].stack_pointer = top - 6;
    }
}

// The library's own address range, and the section that holds every __shared__ variable.
extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

constexpr int N_SIGNALS = 5, SIGNALS[N_SIGNALS] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
inline struct sigaction before_launch[N_SIGNALS];

// The driver turns "pc+0x..." into a source line and addresses into buffers.
inline void on_signal(int signal, siginfo_t* info, void* context) {
    if (!launching) {                             // some other thread's fault: not ours to report
        for (int i = 0; i < N_SIGNALS; i++)
            if (SIGNALS[i] == signal) sigaction(signal, &before_launch[i], nullptr);
        return;
    }
    size_t pc = ((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] - (size_t)__ehdr_start + 1;
    char* address = (char*)info->si_addr;
    if (signal == SIGSEGV || signal == SIGBUS) {
        if (address >= stacks && address < stacks + STACK * MAX_THREADS)
            fail("more than %zu bytes of stack at pc+0x%zx", STACK - PAGE, pc);
        if (address >= dynamic_shared + dynamic_size && address < dynamic_shared + dynamic_size + PAGE)
            fail("bad memory access after %zu bytes of dynamic shared memory at pc+0x%zx", dynamic_size, pc);
        fail("bad memory access to 0x%zx at pc+0x%zx", (size_t)address, pc);
    }
    fail("undefined behaviour (misaligned access, index out of bounds, bad shift, division by zero)"
         " at pc+0x%zx", pc);
}

struct SignalsCaught {                            // for as long as it lives
    stack_t before;
    SignalsCaught() {
        static char stack[1 << 16];
        stack_t ours{stack, 0, sizeof stack};
        sigaltstack(&ours, &before);
        struct sigaction action{};
        action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &action, &before_launch[i]);
        launching = true;
    }
    ~SignalsCaught() {
        launching = false;
        for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &before_launch[i], nullptr);
        sigaltstack(&before, nullptr);
    }
};

struct DynamicShared {                            // ends at a guard page
    char* area;
    size_t pages;
    explicit DynamicShared(size_t bytes) {
        dynamic_size = (bytes + 15) / 16 * 16, pages = (dynamic_size + PAGE - 1) / PAGE * PAGE;
        area = (char*)mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(area + pages, PAGE, PROT_NONE);
        dynamic_shared = area + pages - dynamic_size;
    }
    ~DynamicShared() { munmap(area, pages + PAGE); }
};

inline void run_block(unsigned b) {
    block_number = b, barriers = 0;
    block_place = {b % grid_size.x, b / grid_size.x % grid_size.y, b / grid_size.x / grid_size.y};
    first_ready = n_ready = n_waiting = n_returned = 0, votes = 0;
    forget_copies();
    for (unsigned i = 0; i < n_threads; i += 32) warps[i / 32].arrived = warps[i / 32].epoch = 0;
    for (unsigned i = 0; i < n_threads; i++) {
        fibers[i].place = {i % block_size.x, i / block_size.x % block_size.y,
                           i / block_size.x / block_size.y};
        make_ready(&fibers[i]);
    }
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    memset(dynamic_shared, 0xff, dynamic_size);
    jump(&outside, next_ready());
}

inline bool coprime(unsigned a, unsigned b) {
    while (b) std::swap(a, b), b %= a;
    return a == 1;
}
// Every block once: first + i * step modulo n, with a step that is coprime to n.
inline void run_blocks() {
    unsigned n = grid_size.x * grid_size.y * grid_size.z, step = 1, b = 0;
    if (order == 1) b = n - 1, step = n > 1 ? n - 1 : 1;
    if (order > 1) {
        b = random_below(n), step = random_below(n) + 1;
        while (!coprime(step, n)) step++;
    }
    for (unsigned i = 0; i < n && !failed; i++, b = (unsigned)((b + (uint64_t)step) % n)) run_block(b);
}

// ---- the kernels of this library ---------------------------------------------------------------

// build.py defines the table behind the sources; it ends with a kernel without a name. Built while the library is
// loaded, of std::vector and std::string, it takes the compiler a third of its time.
struct Kernel { const char* name; void (*call)(void**); const char* signature; };
extern const Kernel kernels[];

#include "signature.h"
}  // namespace emulator

#ifdef EMULATOR_RACES
#include "races.h"
#else
#define UNCHECKED
#endif
#include "copies.h"
#include "intrinsics.h"

// A library is one translation unit, so these are plain functions; all else stays hidden.
#define EXPORTED extern "C" __attribute__((visibility("default")))
EXPORTED const char* emulator_kernel(unsigned i) { return emulator::kernels[i].name; }
EXPORTED const char* emulator_signature(unsigned i) { return emulator::kernels[i].signature; }

// Give a library the stacks of the process, made by the first one (null); where they are. Before any launch.
EXPORTED char* emulator_stacks(char* shared) {
    using namespace emulator;
    if (!shared) shared = make_stacks();
    stacks = shared + PAGE;
    return shared;
}

// 0, or 1 with a message. grid and block: three numbers each; arguments: addresses of the values.
EXPORTED int emulator_launch(unsigned kernel, const unsigned* grid, const unsigned* block, size_t shared,
                             void** arguments, int thread_order, char* error, size_t error_size) {
    using namespace emulator;
    const void*& owner = *(const void**)(stacks - PAGE);
    if (owner != fibers) make_fibers(), owner = fibers;
    grid_size = {grid[0], grid[1], grid[2]}, block_size = {block[0], block[1], block[2]};
    n_threads = block_size.x * block_size.y * block_size.z;
    kernel_name = kernels[kernel].name, entry = kernels[kernel].call, entry_arguments = arguments;
    message = error, message_size = error_size, order = thread_order, failed = false, launches++;
    random_state = 0x9e3779b97f4a7c15u * (order + 1);
    {
        DynamicShared room(shared);
        SignalsCaught caught;
        run_blocks();
    }
    if (failed) owner = nullptr;                  // abandoned fibers start anew next time
    return failed;
}
