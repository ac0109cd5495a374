// Masks of neurons: one bit a neuron, bit 0 of word 0 first.
#pragma once
#include "common.h"

__device__ inline bool is_listed(const unsigned* mask, int neuron) {
    return mask[neuron / 32] >> neuron % 32 & 1;
}
