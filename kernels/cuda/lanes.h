// How many lanes of a warp have a row together: all of them, or 16 or eight where no more would have a piece of
// it (weights.h). Then the warp has two rows, or four, and a lane one piece.
#pragma once
#include "common.h"

struct Lanes {
    int bits;                                     // 2 to this power is their number

    __device__ Lanes or_more(Lanes other) const { return {max(bits, other.bits)}; }
    __device__ bool are_a_warp() const { return bits == 5; }
    __device__ int rows_a_warp() const { return WARP >> bits; }
    __device__ int row_of(int thread) const { return thread >> bits; }  // as threads follow each other
    __device__ int first_row(int thread) const { return row_of(thread & -WARP); }  // of the thread's warp
    __device__ int place() const { return lane() & ((1 << bits) - 1); }  // of the lane among them
    __device__ bool is_first() const { return place() == 0; }
    // Every lane gets the sum of its row's 16 numbers in their order, or eight. A whole warp would add zeros to
    // that, which change no bit of a sum that begins with 0.
    __device__ float sum(float v) const {
        float* own = floats_of_warp();
        const float4* fours = (const float4*)(own + (lane() - place()));
        own[lane()] = v;
        __syncwarp();                             // the chains are there
        float s = onto(0.f, fours, 0, 2);
        if (bits == 4) s = onto(s, fours, 2, 4);
        __syncwarp();                             // those of the next rows take their place
        return s;
    }
};
constexpr Lanes WHOLE_WARP{5};
__device__ inline Lanes lanes_for(int n_pieces) { return {n_pieces > 16 ? 5 : n_pieces > 8 ? 4 : 3}; }

// The product of a row with an input, in each of its lanes; 0 where the row is not read. By whole warps.
template <class Rows, class Input>
__device__ inline float dot_where(bool is_read, const Rows& rows, int row, Input x, Lanes lanes) {
    if constexpr (Rows::MAY_BE_SHORT)
        if (!lanes.are_a_warp()) {
            int piece = lanes.place();
            return lanes.sum(is_read && piece < rows.pieces().n ? rows.add_piece(row, piece, x, 0.f) : 0.f);
        }
    return is_read ? rows.dot(row, x) : 0.f;
}
