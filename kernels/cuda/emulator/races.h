// The race build: compiled, but not linked, with -fsanitize=thread. The compiler then calls
// __tsan_read4(p) and its like at every access; these are ours, not libtsan's.
//
// Two accesses to one byte by two threads, one of them a write at least, are a race unless a
// __syncthreads (same block) or a __syncwarp (same warp) lies between. Other warp operations order
// no memory. Two blocks are ordered by an atomic operation of each on one address, if the first one's thread has a
// __threadfence before it and the second one's a __threadfence behind it: what the first block did up to its last
// barrier before that fence comes before what the second does behind its fence, or other threads of it behind the next
// barrier. Atomics do not race with atomics, but with plain accesses they do. Also found: shared memory read before
// anybody wrote it. None of it depends on the order in which the threads happen to run.
#pragma once
#define UNCHECKED __attribute__((no_sanitize("thread")))
namespace emulator {
extern "C" char _end[] __attribute__((visibility("hidden")));

enum Kind { READ, WRITE, ATOMIC };
struct Access { unsigned pc, block, barriers, warp_epoch; int thread; bool atomic; };  // thread -1: none
struct Cell {
    uintptr_t address;
    unsigned launch, block, under_way;            // under_way: where an asynchronous copy to it began, or 0
    Access write, reads[2];
};
constexpr unsigned CELLS = 1 << 21;               // twice the bytes that one launch may touch
inline Cell cells[CELLS];                         // a hash table; entries of older launches are free
inline unsigned cells_used, cells_launch;

// A thread of a block that has fenced: accesses before `barriers` of its block, and its own, come before.
struct Fenced { unsigned block, barriers; int thread; };
struct Released { uintptr_t address; Fenced what; };
struct Acquired { Fenced what, here; };           // what came before, and who has seen it
struct Counted { uintptr_t address; int n_released, thread; };
template <class T, int N> struct Some {           // in the library itself, whose memory nobody watches
    T all[N];
    int n;
    UNCHECKED void add(T one) {
        if (n == N) fail("more than %d fences and atomics for the race build", N);
        all[n++] = one;
    }
};
inline Some<Released, 1 << 14> released;          // by the atomics of this launch, in their order
inline Some<Acquired, 1 << 14> acquired;          // by the running block
inline Some<Counted, 1 << 14> counted;            // its atomics
inline Some<Fenced, 1 << 10> fenced;              // its fences
inline unsigned fences_launch, fences_block;

UNCHECKED inline void begin_block() {             // where that has not been done
    if (fences_launch != launches) released.n = 0;
    else if (fences_block == block_number) return;
    fences_launch = launches, fences_block = block_number;
    acquired.n = counted.n = fenced.n = 0;
}
UNCHECKED inline void fence() {
    begin_block();
    Fenced here{block_number, barriers, self->number};
    fenced.add(here);
    for (int c = 0; c < counted.n; c++)
        for (int i = 0; i < counted.all[c].n_released && counted.all[c].thread == here.thread; i++)
            if (released.all[i].address == counted.all[c].address) acquired.add({released.all[i].what, here});
}
UNCHECKED inline void count_atomic(uintptr_t address) {
    begin_block();
    counted.add({address, released.n, self->number});
    for (int i = 0; i < fenced.n; i++)
        if (fenced.all[i].thread == self->number) released.add({address, fenced.all[i]});
}
UNCHECKED inline bool comes_after(const Access& a, const Fenced& f) {
    return a.block == f.block && (a.barriers > f.barriers || (a.barriers == f.barriers && a.thread == f.thread));
}
UNCHECKED inline bool comes_before(const Access& a, const Fenced& f) {
    return a.block == f.block && (a.barriers < f.barriers || (a.barriers == f.barriers && a.thread == f.thread));
}
UNCHECKED inline bool ordered_by_fences(const Access& before, const Access& now) {
    if (fences_launch != launches || fences_block != now.block) return false;
    for (int i = 0; i < acquired.n; i++)
        if (comes_before(before, acquired.all[i].what) && comes_after(now, acquired.all[i].here)) return true;
    return false;
}
UNCHECKED inline bool ordered(const Access& before, const Access& now) {
    if (before.thread < 0 || (before.atomic && now.atomic)) return true;
    if (before.block != now.block) return ordered_by_fences(before, now);
    if (before.thread == now.thread || before.barriers < now.barriers) return true;
    return before.thread / 32 == now.thread / 32 && before.warp_epoch < now.warp_epoch;
}
UNCHECKED inline bool is_shared(const char* p) {
    return (p >= __start_cuda_shared && p < __stop_cuda_shared) ||
           (p >= dynamic_shared && p < dynamic_shared + dynamic_size);
}
UNCHECKED inline void check(const Access& before, const Access& now, uintptr_t address, const char* what) {
    if (ordered(before, now)) return;
    char place[64];                               // the driver knows the buffers of device memory
    const char* p = (const char*)address;
    if (p >= dynamic_shared && p < dynamic_shared + dynamic_size)
        snprintf(place, sizeof place, "byte %zu of dynamic shared memory", (size_t)(p - dynamic_shared));
    else if (is_shared(p)) snprintf(place, sizeof place, "a byte of shared memory");
    else snprintf(place, sizeof place, "byte 0x%zx", (size_t)address);
    fail("race, %s: %s, at pc+0x%x and, by block %u thread %d, at pc+0x%x", what, place, now.pc,
         before.block, before.thread, before.pc);
}
// The emulator's own variables and the fibers' stacks: private to a thread, or not device memory.
UNCHECKED inline bool is_private(const char* p) {
    return (p >= __ehdr_start && p < _end) || (p >= stacks && p < stacks + STACK * MAX_THREADS);
}
// A byte's cell, or the free one where it belongs. Neighbours in memory are neighbours in the table:
// fewer pages of it are touched.
UNCHECKED inline Cell& find_cell(uintptr_t address) {
    unsigned h = ((unsigned)((address / 64 * 0x9e3779b97f4a7c15u) >> 40) * 64 + address % 64) % CELLS;
    while (cells[h].launch == launches && cells[h].address != address) h = (h + 1) % CELLS;
    return cells[h];
}
UNCHECKED inline Cell& cell_of(uintptr_t address, bool shared) {
    if (cells_launch != launches) cells_launch = launches, cells_used = 0;
    Cell& cell = find_cell(address);
    bool taken = cell.launch == launches;
    if (!taken && ++cells_used > CELLS / 2) fail("the race build's table is full: launch on smaller data");
    if (!taken || (shared && cell.block != block_number)) {
        cell.address = address, cell.launch = launches, cell.block = block_number, cell.under_way = 0;
        cell.write.thread = cell.reads[0].thread = cell.reads[1].thread = -1;
    }
    return cell;
}
UNCHECKED inline void touch_byte(uintptr_t address, bool shared, Kind kind, unsigned pc) {
    Cell& cell = cell_of(address, shared);
    if (cell.under_way)
        fail("race, %s at pc+0x%x of shared memory to which a copy is under way that began at pc+0x%x, and was not"
             " waited for", kind == READ ? "read" : "write", pc, cell.under_way);
    Access now{pc, block_number, barriers, warps[self->number >> 5].epoch, self->number, kind == ATOMIC};
    if (kind == READ && shared && cell.write.thread == -1)
        fail("shared memory read at pc+0x%x before anybody wrote it", pc);
    check(cell.write, now, address, kind == READ ? "read of another's write" : "two writes");
    if (kind == READ) {
        if (cell.reads[0].thread != now.thread || cell.reads[0].block != now.block)
            cell.reads[1] = cell.reads[0];
        cell.reads[0] = now;
        return;
    }
    check(cell.reads[0], now, address, "write of what another read");
    check(cell.reads[1], now, address, "write of what another read");
    cell.write = now;
}
UNCHECKED inline void touch(const void* p, size_t n, Kind kind, void* pc) {
    if (self == &outside || failed) return;
    if (kind == ATOMIC) count_atomic((uintptr_t)p);
    bool shared = is_shared((const char*)p);
    if (!shared && is_private((const char*)p)) return;
    for (size_t i = 0; i < n; i++)
        touch_byte((uintptr_t)p + i, shared, kind, (unsigned)((char*)pc - __ehdr_start));
}
UNCHECKED inline void set_under_way(const char* p, size_t n, unsigned pc) {
    for (size_t i = 0; i < n; i++) cell_of((uintptr_t)p + i, true).under_way = pc;
}
}  // namespace emulator

// How many of n bytes the last launch read, and how many it wrote, each byte counted once.
extern "C" UNCHECKED __attribute__((visibility("default")))
void emulator_touched(uintptr_t first, size_t n, size_t* bytes_read, size_t* bytes_written) {
    using namespace emulator;
    *bytes_read = *bytes_written = 0;
    for (size_t i = 0; i < n; i++) {
        const Cell& cell = find_cell(first + i);
        if (cell.launch != launches) continue;
        *bytes_read += cell.reads[0].thread >= 0, *bytes_written += cell.write.thread >= 0;
    }
}

#define RACE_HOOK(name, n, kind) extern "C" UNCHECKED __attribute__((visibility("hidden"))) \
    void __tsan_##name(void* p) { emulator::touch(p, n, kind, __builtin_return_address(0)); }
#define RACE_HOOKS(n) \
    RACE_HOOK(read##n, n, emulator::READ) RACE_HOOK(write##n, n, emulator::WRITE) \
    RACE_HOOK(unaligned_read##n, n, emulator::READ) RACE_HOOK(unaligned_write##n, n, emulator::WRITE)
RACE_HOOKS(1) RACE_HOOKS(2) RACE_HOOKS(4) RACE_HOOKS(8) RACE_HOOKS(16)
extern "C" UNCHECKED void __tsan_read_range(void* p, size_t n) {
    emulator::touch(p, n, emulator::READ, __builtin_return_address(0));
}
extern "C" UNCHECKED void __tsan_write_range(void* p, size_t n) {
    emulator::touch(p, n, emulator::WRITE, __builtin_return_address(0));
}
extern "C" UNCHECKED void __tsan_func_entry(void*) {}
extern "C" UNCHECKED void __tsan_func_exit() {}
extern "C" UNCHECKED void __tsan_init() {}
