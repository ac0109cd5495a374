// Which sequence's KV cache a token has, where several have one each: all their heads lie one behind the other.
#pragma once
#include "common.h"

// Behind the positions of all tokens come their slots, where there is more than one.
__device__ inline int slot_of(const int* positions, int n_tokens, int token, int n_slots) {
    return n_slots > 1 ? positions[n_tokens + token] : 0;
}
