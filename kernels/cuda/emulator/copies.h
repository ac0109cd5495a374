// Asynchronous copies into shared memory. Included by emulator.h, behind races.h.
//
// When a copy begins its target becomes poison, and the bytes are taken from their place only when the thread waits for
// the copy's group: what reads, or writes, too early finds 0xFF, or writes in vain. The race build says so of every
// access in between, by whatever thread, and holds the bytes for written by the thread when it waits, so that others
// need a barrier behind that. A thread that returns with a copy that it never waited for is an error in every build.
#pragma once
namespace emulator {
struct Copy {
    char* to;
    const char* from;
    int size;
    bool is_there;
    Where begun;
};
constexpr unsigned MOST_COPIES = 64;
struct Copies {                                   // of a thread: those under way, the oldest first
    Copy list[MOST_COPIES];
    unsigned n, groups[MOST_COPIES], n_groups;    // how many of them were begun up to the end of each group
};
inline Copies copies_of[MAX_THREADS];

UNCHECKED inline void begin_copy(char* to, const char* from, int size, bool is_there, void* pc, Where where) {
    Copies& own = copies_of[self->number];
    bool in_shared = (to >= __start_cuda_shared && to + size <= __stop_cuda_shared) ||
                     (to >= dynamic_shared && to + size <= dynamic_shared + dynamic_size);
    if (!in_shared) fail("bad memory access: an asynchronous copy to outside shared memory at %s", text(where));
    if ((uintptr_t)to % size || (uintptr_t)from % size)
        fail("%s: an asynchronous copy of %d bytes that is not aligned", text(where), size);
    if (own.n == MOST_COPIES) fail("%s: more than %u copies of a thread are under way", text(where), MOST_COPIES);
#ifdef EMULATOR_RACES
    if (is_there) touch(from, size, READ, pc);
    touch(to, size, WRITE, pc);
    set_under_way(to, size, (unsigned)((char*)pc - __ehdr_start));
#endif
    if (is_there) (void)*(volatile const char*)from, (void)*(volatile const char*)(from + size - 1);
    for (int i = 0; i < size; i++) to[i] = (char)0xff;
    own.list[own.n++] = {to, from, size, is_there, where};
}
UNCHECKED inline void commit_copies_of_thread(Where where) {
    Copies& own = copies_of[self->number];
    if (own.n_groups == MOST_COPIES) fail("%s: more than %u groups of copies are under way", text(where), MOST_COPIES);
    own.groups[own.n_groups++] = own.n;
}
UNCHECKED inline void wait_for_copies_of_thread(unsigned n_left, void* pc) {
    Copies& own = copies_of[self->number];
    if (own.n_groups <= n_left) return;
    unsigned n_done = own.n_groups - n_left, end = own.groups[n_done - 1];
    for (unsigned i = 0; i < end; i++) {
        const Copy& copy = own.list[i];
#ifdef EMULATOR_RACES
        set_under_way(copy.to, copy.size, 0);
        touch(copy.to, copy.size, WRITE, pc);
#endif
        for (int k = 0; k < copy.size; k++) copy.to[k] = copy.is_there ? copy.from[k] : 0;
    }
    for (unsigned i = end; i < own.n; i++) own.list[i - end] = own.list[i];
    for (unsigned i = n_done; i < own.n_groups; i++) own.groups[i - n_done] = own.groups[i] - end;
    own.n -= end, own.n_groups -= n_done;
}
inline void check_copies_are_over() {             // the running thread is about to return
    const Copies& own = copies_of[self->number];
    if (own.n) fail("%u asynchronous copies were never waited for, the first of them at %s", own.n,
                    text(own.list[0].begun));
}
inline void forget_copies() {
    for (unsigned i = 0; i < n_threads; i++) copies_of[i].n = copies_of[i].n_groups = 0;
}
}  // namespace emulator
