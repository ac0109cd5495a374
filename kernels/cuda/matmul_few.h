// Tiles of 16 rows by 16 tokens, of which each of a block's eight warps walks along a part of all rows: for few tokens, or
// few rows, of which there are not enough tiles of 64 by 64 for all multiprocessors.
//
// A row's 32 chains know nothing of each other before they are added (weights.h). So the eight warps share them out: of
// pieces that lie side by side in a row each takes two, or one where a piece has 64 weights, decodes them into shared
// memory of its own, and goes on to those of the same chains without waiting for the others. When the row is at its end each
// thread adds these chains of one number in their order, and the warps take the next ones, two times or four: the bits of
// a row alone, and of a tile of 64 by 64.
#pragma once
#include "matmul.h"

constexpr int FEW_SIDE = 16;                      // rows and tokens of a tile: one number a thread
constexpr int EIGHTS = FEW_SIDE / 8;              // of tokens
constexpr int OWN_UNITS = 4;                      // of a row, in one step of a warp
constexpr int OWN_STRIDE = OWN_UNITS + 1;         // from row to row: eight rows begin in eight times four banks

// A step of one warp, and in its place at the end of a pass the sums of its chains.
union FewStep {
    struct {
        int4 rows[FEW_SIDE * OWN_STRIDE];
        float row_scales[OWN_UNITS * FEW_SIDE], row_minima[OWN_UNITS * FEW_SIDE];
        float input_scales[OWN_UNITS * FEW_SIDE], input_sums[OWN_UNITS * FEW_SIDE];  // the sums are times the scales
    };
    float chains[OWN_UNITS / 2][FEW_SIDE * FEW_SIDE];
};
__device__ static inline FewStep* few_steps() {
    DYNAMIC_SHARED(int4, shared_few_steps);
    return (FewStep*)shared_few_steps;
}

// Of four numbers of a lane and eight tokens, as tensor cores have it: lane 4 g + t has rows g and g + 8 and tokens 2 t and
// 2 t + 1.
__device__ inline int few_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
__device__ inline int few_token(int lane, int i) { return lane % 4 * 2 + i % 2; }

// How rows of a type are cut: a warp has two chains at once and pieces of two units, or one and pieces of four, and all
// warps together have a pass of them. A term is what has one scale.
template <class Rows> struct FewShape {
    static constexpr int PIECE = Rows::piece_units(), CHAINS = OWN_UNITS / PIECE, PASS = 8 * CHAINS;
    static constexpr int TERM = Rows::QUARTERS || Rows::HALF_SCALES ? 1 : 2;
    static_assert(TERM == 1 || Rows::MINIMA < 2, "a minimum of each sixteen");
    // Unit `at` of a step that begins with a piece; past the last piece it is one of that.
    __device__ static int unit(Rows rows, int piece, int at) {
        return Rows::unit_of(min(piece + at / PIECE, rows.pieces().n - 1), at % PIECE);
    }
};

// ---- products of a term of 16 rows by eight tokens ---------------------------------------------
// `begin` fetches the inputs of a step that begins with a piece.

template <class Rows> struct FewByDp4a {
    static constexpr int TERM = FewShape<Rows>::TERM;
    struct Weights { int4 of[2][TERM]; };
    const int4* inputs;
    int first[EIGHTS][2], units[OWN_UNITS];       // where the lane's tokens begin, and where the step's units are

    template <class Inputs> __device__ FewByDp4a(Quantised x, Inputs given, int n) : inputs(x.q) {
        for (int j = 0; j < EIGHTS; j++)
            for (int i = 0; i < 2; i++) first[j][i] = given.of(min(8 * j + few_token(lane(), i), given.n - 1)) * (n / 16);
    }
    __device__ void begin(Rows rows, int piece) {
        for (int at = 0; at < OWN_UNITS; at++) units[at] = FewShape<Rows>::unit(rows, piece, at);
    }
    __device__ static Weights weights(const FewStep& step, int at) {
        Weights w;
        for (int h = 0; h < 2; h++)
            for (int k = 0; k < TERM; k++) w.of[h][k] = step.rows[few_row(lane(), 2 * h) * OWN_STRIDE + at + k];
        return w;
    }
    __device__ void multiply(int (&product)[4], const Weights& w, int at, int j) const {
        for (int i = 0; i < 2; i++)
            for (int k = 0; k < TERM; k++) {
                int4 x = inputs[first[j][i] + units[at + k]];
                for (int h = 0; h < 2; h++) product[2 * h + i] = dot16(w.of[h][k], x, product[2 * h + i]);
            }
    }
};

#ifdef TENSOR_CORES
// The order of the numbers within a term is free, so that of 32 a lane takes eight which lie side by side.
template <class Rows> struct FewByTensorCores {
    static constexpr int TERM = FewShape<Rows>::TERM;
    struct Weights { unsigned of[2 * TERM]; };
    const unsigned* inputs[EIGHTS];               // of token g of each eight: the lane's words
    unsigned x[OWN_UNITS][EIGHTS];

    template <class Inputs> __device__ FewByTensorCores(Quantised of_all, Inputs given, int n) {
        for (int j = 0; j < EIGHTS; j++) {
            int token = given.of(min(8 * j + lane() / 4, given.n - 1));
            inputs[j] = (const unsigned*)of_all.of_token(token, n).q + TERM * (lane() % 4);
        }
    }
    __device__ void begin(Rows rows, int piece) {
        for (int at = 0; at < OWN_UNITS; at += TERM) {
            int unit = FewShape<Rows>::unit(rows, piece, at);
            for (int j = 0; j < EIGHTS; j++) {
                if constexpr (TERM == 1) x[at][j] = inputs[j][4 * unit];
                else {
                    uint2 two = *(const uint2*)(inputs[j] + 4 * unit);
                    x[at][j] = two.x, x[at + 1][j] = two.y;
                }
            }
        }
    }
    __device__ static Weights weights(const FewStep& step, int at) {
        Weights w;
        for (int h = 0; h < 2; h++) {
            const unsigned* own = (const unsigned*)(step.rows + (lane() / 4 + 8 * h) * OWN_STRIDE + at) + TERM * (lane() % 4);
            if constexpr (TERM == 1) w.of[h] = *own;
            else {
                uint2 two = *(const uint2*)own;
                w.of[h] = two.x, w.of[2 + h] = two.y;
            }
        }
        return w;
    }
    __device__ void multiply(int (&product)[4], const Weights& w, int at, int j) const {
        if constexpr (TERM == 1) mma_s8(product, w.of, {x[at][j]});
        else mma_s8(product, w.of, {x[at][j], x[at + 1][j]});
    }
};
template <class Rows> using FewProducts = FewByTensorCores<Rows>;
#else
template <class Rows> using FewProducts = FewByDp4a<Rows>;
#endif

// ---- a warp's step -----------------------------------------------------------------------------
// Past the last row, and the last token, it takes that again.

// A lane has two units of a row, those that share bytes if any do, and of each two blocks' scales one.
template <class Rows> __device__ inline void decode(FewStep& step, Rows rows, int first_row, int last_row, int piece) {
    using Shape = FewShape<Rows>;
    int line = lane() / 2, side = lane() % 2, row = min(first_row + line, last_row - 1);
    for (int k = 0; k < 2; k++) {
        int at = Shape::PIECE == 2 ? 2 * side + k : side + 2 * k, unit = Shape::unit(rows, piece, at);
        step.rows[line * OWN_STRIDE + at] = rows.sixteen(row, unit);
        if (Shape::TERM == 2 && k == 1) continue;
        int of_scale = Shape::TERM == 2 ? 2 * side : at;
        unit = Shape::unit(rows, piece, of_scale);
        step.row_scales[of_scale * FEW_SIDE + line] = rows.scale(row, unit);
        if constexpr (Rows::MINIMA > 0) step.row_minima[of_scale * FEW_SIDE + line] = rows.minimum(row, unit);
    }
}

// Scales and sums of the lane's input x.
template <class Rows> __device__ inline void put_scales(FewStep& step, Rows rows, Quantised x, int piece) {
    using Shape = FewShape<Rows>;
    for (int at = lane() / FEW_SIDE * Shape::TERM; at < OWN_UNITS; at += 2 * Shape::TERM) {
        int unit = Shape::unit(rows, piece, at), place = at * FEW_SIDE + lane() % FEW_SIDE;
        float d = x.d[unit / 2];
        step.input_scales[place] = d;
        if constexpr (Rows::MINIMA == 1) step.input_sums[place] = from_int(x.sum[unit / 2]) * d;
        if constexpr (Rows::MINIMA == 2) step.input_sums[place] = from_int(sum16(x.q[unit])) * d;
    }
}

// The piece from unit `first` of a step on, onto the sums of its chain.
template <class Rows, class Products>
__device__ inline void add_piece(const FewStep& step, Rows, const Products& products, int first, int n_some,
                                 float (&sums)[EIGHTS][4]) {
    using Shape = FewShape<Rows>;
    for (int at = first; at < first + Shape::PIECE; at += Shape::TERM) {
        auto w = Products::weights(step, at);
        float scale[2], minimum[2];
        for (int h = 0; h < 2; h++) {
            scale[h] = step.row_scales[at * FEW_SIDE + few_row(lane(), 2 * h)];
            if constexpr (Rows::MINIMA > 0) minimum[h] = step.row_minima[at * FEW_SIDE + few_row(lane(), 2 * h)];
        }
        for (int j = 0; j < EIGHTS; j++) {
            if (j > 0 && j >= n_some) break;      // the first eight has a token
            int product[4] = {FLOAT_BITS, FLOAT_BITS, FLOAT_BITS, FLOAT_BITS};
            products.multiply(product, w, at, j);
            for (int i = 0; i < 4; i++) {
                int place = at * FEW_SIDE + 8 * j + few_token(lane(), i);
                float& sum = sums[j][i];
                sum = fmaf(scale[i / 2] * step.input_scales[place], from_bits(product[i]), sum);
                if constexpr (Rows::MINIMA > 0) sum = fmaf(-minimum[i / 2], step.input_sums[place], sum);
            }
        }
    }
}

// Rows first_row to last_row - 1, 16 at most, times inputs of a tile, 16 at most: store(row, t, number) gets each number.
template <template <class> class Products, class Rows, class Inputs, class Store>
__device__ inline void multiply_few(Rows rows, int first_row, int last_row, Quantised x, Inputs inputs, Store store) {
    using Shape = FewShape<Rows>;
    FewStep& step = few_steps()[warp()];
    Products<Rows> products(x, inputs, rows.n);
    Quantised own = x.of_token(inputs.of(min(lane() % FEW_SIDE, inputs.n - 1)), rows.n);
    int n_some = min((inputs.n + 7) / 8, EIGHTS), n_pieces = rows.pieces().n;
    float total = 0.f;
    UNROLL(1)
    for (int pass = 0; pass < WARP; pass += Shape::PASS) {
        float sums[Shape::CHAINS][EIGHTS][4] = {};
        UNROLL(1)
        for (int piece = pass + Shape::CHAINS * warp(); piece < n_pieces; piece += WARP) {
            products.begin(rows, piece);
            put_scales(step, rows, own, piece);
            decode(step, rows, first_row, last_row, piece);
            __syncwarp();                         // the step is there
            for (int c = 0; c < Shape::CHAINS; c++)
                if (piece + c < n_pieces) add_piece(step, rows, products, c * Shape::PIECE, n_some, sums[c]);
            __syncwarp();                         // nobody reads it any more
        }
        for (int c = 0; c < Shape::CHAINS; c++)
            for (int j = 0; j < EIGHTS; j++)
                for (int i = 0; i < 4; i++) step.chains[c][WARP * (4 * j + i) + lane()] = sums[c][j][i];
        __syncthreads();                          // the chains of all warps are there
        for (int w = 0; w < 8; w++)
            for (int c = 0; c < Shape::CHAINS; c++) total += few_steps()[w].chains[c][threadIdx.x];
        __syncthreads();                          // they have been added
    }
    int row = first_row + few_row(lane(), warp() % 4), t = warp() / 4 * 8 + few_token(lane(), warp() % 4);
    if (row < last_row && t < inputs.n) store(row, t, total);
}

// grid: (rows / 16, tokens / 16).
template <template <class> class Products, class Rows>
__device__ inline void matmul_few(Rows rows, Quantised x, Epilogue out, int n_tokens) {
    int first_row = (int)blockIdx.x * FEW_SIDE, first_token = (int)blockIdx.y * FEW_SIDE;
    multiply_few<Products>(rows, first_row, min(first_row + FEW_SIDE, out.n_rows), x,
                           Following{first_token, min(n_tokens - first_token, FEW_SIDE)},
                           [&](int row, int t, float v) { out.store(first_token + t, row, v); });
}
