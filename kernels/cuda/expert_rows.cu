// Products with the matrices of chosen experts.
//
// The matrices of the experts that are here lie one behind the other; slots[expert] is an expert's place among
// them, below 0 for one that is not here. chosen[n_tokens][2 n_used] is as top_k leaves it. A pair is a token and
// one of its choices; there are n_tokens * n_used.
#include "parameters.h"

// y[pair][row] = W_e[row] . x + bias_e[row], x of the token or, if per_pair, of the pair; 0 where expert e is not
// here, whose rows are not read. bias[n_expert][bias_stride], if has_bias. One warp a row, or less (lanes.h).
// grid: (rows / rows of a block, pairs).
template <class Rows, class Input>
__device__ inline void expert_rows(Rows rows, Input x, const int* slots, const int* chosen, const float* bias,
                                   float* y, int n_rows, int n_used, int per_pair, int has_bias,
                                   int bias_stride) {
    Lanes lanes = rows.lanes();
    int row = lanes.row_of(thread_of_row()), pair = (int)blockIdx.y;
    int token = pair / n_used, choice = pair % n_used;
    int expert = chosen[(size_t)token * 2 * n_used + choice], slot = slots[expert];
    bool is_here = row < n_rows, is_read = is_here && slot >= 0;
    float v = dot_where(is_read, rows, slot * n_rows + row, x.of_token(per_pair ? pair : token, rows.n), lanes);
    if (is_read && has_bias) v += bias[(size_t)expert * bias_stride + row];
    if (is_here && lanes.is_first()) y[(size_t)pair * n_rows + row] = v;
}

#define EXPERT_ROWS(T) \
KERNEL_WIDE expert_rows_##T(PLANES_##T(w), INPUT_##T, const int* __restrict__ slots, const int* __restrict__ chosen, \
                       const float* __restrict__ bias, float* __restrict__ y, int n_rows, int n, int n_used, \
                       int per_pair, int has_bias, int bias_stride) { \
    expert_rows(ROWS_##T(w, n), X_##T, slots, chosen, bias, y, n_rows, n_used, per_pair, has_bias, bias_stride); \
}
ONE_TYPE(EXPERT_ROWS)
