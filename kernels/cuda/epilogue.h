// What follows a product W x before it is stored: y = residual + act(W x + bias).
#pragma once
#include "activations.h"
#include "addends.h"

struct Epilogue {
    enum { RELU = 4 };                            // of flags, beside HAS_BIAS and HAS_RESIDUAL of addends.h
    const float *bias, *residual;                 // [n_rows], [n_tokens][n_rows]; read if the flags say so
    float* y;                                     // [n_tokens][n_rows]; residual may be y
    int n_rows, flags;

    __device__ float finished(int token, int row, float v) const {
        if (flags & Addends::HAS_BIAS) v += bias[row];
        if (flags & RELU) v = relu(v);
        if (flags & Addends::HAS_RESIDUAL) v = residual[(size_t)token * n_rows + row] + v;
        return v;
    }
    __device__ void store(int token, int row, float v) const {
        y[(size_t)token * n_rows + row] = finished(token, row, v);
    }
};
