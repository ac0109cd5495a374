// The gated ReLU FFN over the active rows: y = sum_i relu(gate_i x) (up_i x) down_i.
//
// The active rows are cut into as many groups as the grid has blocks, by their number alone. A group
// is taken in tiles: first each warp works out the hidden values of whole rows, then each thread sums
// eight columns of the down rows over the tile, in ascending order. sum_groups adds the groups.
#include "weights.h"

constexpr int TILE = 256;                         // rows whose hidden values lie in shared memory
struct Tile { float hidden[TILE]; int row[TILE]; };
__device__ static inline Tile& shared_tile() {
    __shared__ Tile tile;
    return tile;
}

// relu(gate_i x) (up_i x) for one row, in every lane; the up row is read only where the gate is open.
template <class Rows, class Input>
__device__ inline float hidden_value(Rows gate, Rows up, Input x, int row) {
    float g = gate.dot(row, x);
    if (g <= 0.f) return 0.f;                     // NaN goes on, and shows in the answer
    return g * up.dot(row, x);
}

// grid: (groups, tokens). ids[n_tokens][n_rows], count[n_tokens] -> partial[n_tokens][groups][n].
template <class Rows, class Input>
__device__ inline void sparse_ffn(Rows gate, Rows up, Rows down, Input x, const int* ids, const int* count,
                                  float* partial, int n_rows) {
    Tile& tile = shared_tile();
    int n = down.n, token = (int)blockIdx.y, n_active = count[token];
    int size = (n_active + (int)gridDim.x - 1) / (int)gridDim.x;
    int first = min((int)blockIdx.x * size, n_active), last = min(first + size, n_active);
    ids += (size_t)token * n_rows, partial += ((size_t)token * gridDim.x + blockIdx.x) * n;
    x = x.of_token(token, n);
    for (int start = first; start == first || start < last; start += TILE) {
        int n_tile = min(last - start, TILE);
        for (int i = warp(); i < n_tile; i += n_warps()) {
            int row = ids[start + i];
            float h = hidden_value(gate, up, x, row);
            if (lane() == 0) tile.hidden[i] = h, tile.row[i] = row;
        }
        __syncthreads();
        for (int unit = threadIdx.x; unit < down.n_units(); unit += blockDim.x) {
            float sum[8] = {}, w[8];
            for (int i = 0; i < n_tile; i++) {
                float h = tile.hidden[i];
                if (h == 0.f) continue;
                down.eight(tile.row[i], unit, w);
                for (int k = 0; k < 8; k++) sum[k] = fmaf(h, w[k], sum[k]);
            }
            for (int k = 0; k < 8; k++) {
                int column = down.column(unit, k);
                if (column < n) partial[column] = start == first ? sum[k] : partial[column] + sum[k];
            }
        }
        __syncthreads();                          // the tile is about to be written again
    }
}

KERNEL_WIDE sparse_ffn_f32(const float* __restrict__ gate, const float* __restrict__ up,
                           const float* __restrict__ down, const float* __restrict__ x,
                           const int* __restrict__ ids, const int* __restrict__ count,
                           float* __restrict__ partial, int n_rows, int n) {
    typedef Plain<float> Rows;
    sparse_ffn(Rows(gate, n), Rows(up, n), Rows(down, n), Floats{x}, ids, count, partial, n_rows);
}
KERNEL_WIDE sparse_ffn_f16(const __half* __restrict__ gate, const __half* __restrict__ up,
                           const __half* __restrict__ down, const float* __restrict__ x,
                           const int* __restrict__ ids, const int* __restrict__ count,
                           float* __restrict__ partial, int n_rows, int n) {
    typedef Plain<__half> Rows;
    sparse_ffn(Rows(gate, n), Rows(up, n), Rows(down, n), Floats{x}, ids, count, partial, n_rows);
}
KERNEL_WIDE sparse_ffn_bf16(const unsigned short* __restrict__ gate, const unsigned short* __restrict__ up,
                            const unsigned short* __restrict__ down, const float* __restrict__ x,
                            const int* __restrict__ ids, const int* __restrict__ count,
                            float* __restrict__ partial, int n_rows, int n) {
    typedef Plain<unsigned short> Rows;
    sparse_ffn(Rows(gate, n), Rows(up, n), Rows(down, n), Floats{x}, ids, count, partial, n_rows);
}
KERNEL_WIDE sparse_ffn_q8_0(const __half* __restrict__ gate_scales, const int4* __restrict__ gate,
                            const __half* __restrict__ up_scales, const int4* __restrict__ up,
                            const __half* __restrict__ down_scales, const int4* __restrict__ down,
                            const int4* __restrict__ q, const float* __restrict__ d,
                            const int* __restrict__ sum, const int* __restrict__ ids,
                            const int* __restrict__ count, float* __restrict__ partial,
                            int n_rows, int n) {
    sparse_ffn(Q8_0(gate_scales, gate, n), Q8_0(up_scales, up, n), Q8_0(down_scales, down, n),
               Quantised{q, d, sum}, ids, count, partial, n_rows);
}
KERNEL_WIDE sparse_ffn_q4_0(const __half* __restrict__ gate_scales, const uint4* __restrict__ gate,
                            const __half* __restrict__ up_scales, const uint4* __restrict__ up,
                            const __half* __restrict__ down_scales, const uint4* __restrict__ down,
                            const int4* __restrict__ q, const float* __restrict__ d,
                            const int* __restrict__ sum, const int* __restrict__ ids,
                            const int* __restrict__ count, float* __restrict__ partial,
                            int n_rows, int n) {
    sparse_ffn(Q4_0(gate_scales, gate, n), Q4_0(up_scales, up, n), Q4_0(down_scales, down, n),
               Quantised{q, d, sum}, ids, count, partial, n_rows);
}

// partial[n_tokens][n_groups][n] -> y[n_tokens][n]. Warp w of a block sums groups w, w + warps, ... of
// 32 columns; the first warp adds the warps' sums in order. grid: (columns / 32, tokens).
KERNEL sum_groups(const float* __restrict__ partial, float* __restrict__ y, int n_groups, int n) {
    __shared__ float of_warp[8][WARP];
    int column = (int)blockIdx.x * WARP + lane(), token = (int)blockIdx.y;
    partial += (size_t)token * n_groups * n, y += (size_t)token * n;
    float s = 0.f;
    if (column < n)
        for (int g = warp(); g < n_groups; g += n_warps()) s += partial[(size_t)g * n + column];
    of_warp[warp()][lane()] = s;
    __syncthreads();
    if (warp() > 0 || column >= n) return;
    s = of_warp[0][lane()];
    for (int w = 1; w < n_warps(); w++) s += of_warp[w][lane()];
    y[column] = s;
}
