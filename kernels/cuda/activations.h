// What stands between up (and gate) and down in an FFN; formats.py has the same numbers.
#pragma once
#include "common.h"

enum { RELU_ACTIVATION = 0, SILU_ACTIVATION = 1, RELU_BOTH_ACTIVATION = 2, GELU_ACTIVATION = 3,
       SWIGLU_OAI_ACTIVATION = 4 };

__device__ inline float relu(float v) { return v <= 0.f ? 0.f : v; }  // NaN goes on, and shows in the answer
__device__ inline float silu(float v) { return v / (1.f + expf(-v)); }
// v (1 + tanh(z)) / 2 with z = sqrt(2 / pi) (v + 0.044715 v^3), since (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)).
__device__ inline float gelu(float v) {
    float z = 0.7978845608f * fmaf(0.044715f * v, v * v, v);
    return v / (1.f + expf(-2.f * z));
}
// Of the gate, or of up where there is no gate.
__device__ inline float activated(float v, int activation) {
    return activation == SILU_ACTIVATION ? silu(v) : activation == GELU_ACTIVATION ? gelu(v) : relu(v);
}
// Whether the neuron's hidden value is zero whatever up gives, so that its up row need not be read.
__device__ inline bool is_closed(float gate, int activation) {
    return gate <= 0.f && (activation == RELU_ACTIVATION || activation == RELU_BOTH_ACTIVATION);
}
// What |act(gate)| of a row has to reach, values[row], or up and down need not be read; nothing where is_there is 0,
// and at the first positions of a context. positions[token] says where a token stands. A NaN reaches everything.
constexpr int EXACT_POSITIONS = 8;                // formats.py has the same
struct Least {
    const float* values;
    const int* positions;
    int is_there;
    __device__ bool leaves_out(float gate, int row, int token, int activation) const {
        return is_there && positions[token] >= EXACT_POSITIONS && fabsf(activated(gate, activation)) < values[row];
    }
};
// g sigmoid(1.702 g) (u + 1) of g = min(gate, 7) and u = up kept within -7 and 7, as gpt-oss has it.
__device__ inline float swiglu_oai(float gate, float up) {
    float g = gate > 7.f ? 7.f : gate, u = up > 7.f ? 7.f : up < -7.f ? -7.f : up;
    return g / (1.f + expf(-1.702f * g)) * (u + 1.f);
}
// RELU_BOTH is the relu of gate and of up.
__device__ inline float gated(float gate, float up, int activation) {
    if (activation == SWIGLU_OAI_ACTIVATION) return swiglu_oai(gate, up);
    return activated(gate, activation) * (activation == RELU_BOTH_ACTIVATION ? relu(up) : up);
}
