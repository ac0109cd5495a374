// Tiles of 16 rows by 16 tokens, of which each of a block's eight warps walks along a part of all rows: for few tokens,
// or few rows, of which there are not enough tiles of 64 by 64 for all multiprocessors.
//
// A row's 32 chains know nothing of each other before they are added (weights.h). So the eight warps share them out: of
// pieces that lie side by side in a row each takes two, or one where a piece has 64 weights, decodes them into shared
// memory of its own, and goes on to those of the same chains without waiting for the others. When the row is at its end
// each thread adds these chains of one number in their order, and the warps take the next ones, two times or four: the
// bits of a row alone, and of a tile of 64 by 64.
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

// Of four numbers of a lane and eight tokens, as tensor cores have it: lane 4 g + t has rows g and g + 8 and tokens 2 t
// and 2 t + 1.
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

// Where input t begins, in units; behind the last one it is that again.
template <class Inputs> __device__ inline int begin_of(Inputs inputs, int t, int n) {
    return inputs.of(min(t, inputs.n - 1)) * (n / 16);
}

// Of a term, by a thread without tensor cores: as many as the kernel's registers have room for.
template <class Inputs> constexpr int UNITS_AT_ONCE = 1;
template <> constexpr int UNITS_AT_ONCE<Following> = 2;

template <class Rows, class Inputs> struct FewByDp4a {
    static constexpr int TERM = FewShape<Rows>::TERM;
    static constexpr int DECODED_AT_ONCE = Rows::WAITS_DECODED ? 2 : 1;  // else some spill
    struct Weights { const int4* first; };        // of the lane's first row
    Rows rows;
    Quantised x;
    Inputs inputs;
    int piece;

    __device__ void begin(int first) { piece = first; }
    __device__ static Weights weights(const FewStep& step, int at) {
        return {step.rows + few_row(lane(), 0) * OWN_STRIDE + at};
    }
    __device__ void multiply(int (&product)[4], const Weights& w, int at, int j) const {
        UNROLL(UNITS_AT_ONCE<Inputs>)
        for (int k = 0; k < TERM; k++) {
            int4 of_rows[2] = {w.first[k], w.first[8 * OWN_STRIDE + k]};
            int unit = FewShape<Rows>::unit(rows, piece, at + k);
            UNROLL(2)
            for (int i = 0; i < 2; i++) {
                int4 sixteen = x.q[begin_of(inputs, 8 * j + few_token(lane(), i), rows.n) + unit];
                UNROLL(2)
                for (int h = 0; h < 2; h++) product[2 * h + i] = dot16(of_rows[h], sixteen, product[2 * h + i]);
            }
        }
    }
};

#ifdef TENSOR_CORES
// The order of the numbers within a term is free, so that of 32 a lane takes eight which lie side by side.
template <class Rows, class Inputs> struct FewByTensorCores {
    static constexpr int TERM = FewShape<Rows>::TERM;
    static constexpr int DECODED_AT_ONCE = 2;
    struct Weights { unsigned of[2 * TERM]; };
    Rows rows;
    Quantised x;
    Inputs inputs;
    unsigned words[OWN_UNITS][EIGHTS];            // the lane's, of token g of each eight

    __device__ void begin(int piece) {
        for (int j = 0; j < EIGHTS; j++) {
            const int4* own = x.q + begin_of(inputs, 8 * j + lane() / 4, rows.n);
            for (int at = 0; at < OWN_UNITS; at += TERM) {
                const unsigned* of_term = (const unsigned*)(own + FewShape<Rows>::unit(rows, piece, at)) + TERM * (lane() % 4);
                if constexpr (TERM == 1) words[at][j] = *of_term;
                else {
                    uint2 two = *(const uint2*)of_term;
                    words[at][j] = two.x, words[at + 1][j] = two.y;
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
        if constexpr (TERM == 1) mma_s8(product, w.of, {words[at][j]});
        else mma_s8(product, w.of, {words[at][j], words[at + 1][j]});
    }
};
template <class Rows, class Inputs> using FewProducts = FewByTensorCores<Rows, Inputs>;
#else
template <class Rows, class Inputs> using FewProducts = FewByDp4a<Rows, Inputs>;
#endif

// ---- a warp's step -----------------------------------------------------------------------------
// Past the last row, and the last token, it takes that again.

// A lane has two units of a row, those that share bytes if any do, and of each two blocks' scales one.
template <int AT_ONCE, class Rows>
__device__ inline void decode(FewStep& step, Rows rows, int first_row, int last_row, int piece) {
    using Shape = FewShape<Rows>;
    int line = lane() / 2, side = lane() % 2, row = min(first_row + line, last_row - 1);
    UNROLL(AT_ONCE)
    for (int k = 0; k < 2; k++) {
        int at = Shape::PIECE == 2 ? 2 * side + k : side + 2 * k, unit = Shape::unit(rows, piece, at);
        int4 sixteen = rows.sixteen(row, unit);   // the race build does not see what is made in its place
        step.rows[line * OWN_STRIDE + at] = sixteen;
        if (Shape::TERM == 2 && k == 1) continue;
        int of_scale = Shape::TERM == 2 ? 2 * side : at;
        unit = Shape::unit(rows, piece, of_scale);
        step.row_scales[of_scale * FEW_SIDE + line] = rows.scale(row, unit);
        if constexpr (Rows::MINIMA > 0) step.row_minima[of_scale * FEW_SIDE + line] = rows.minimum(row, unit);
    }
}

// Scales and sums of inputs.
template <class Rows, class Inputs>
__device__ inline void put_scales(FewStep& step, Rows rows, Quantised x, Inputs inputs, int piece) {
    using Shape = FewShape<Rows>;
    int own = begin_of(inputs, lane() % FEW_SIDE, rows.n);
    for (int at = lane() / FEW_SIDE * Shape::TERM; at < OWN_UNITS; at += 2 * Shape::TERM) {
        int unit = own + Shape::unit(rows, piece, at), place = at * FEW_SIDE + lane() % FEW_SIDE;
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

// Puts a warp's chains, of a lane's four numbers of each eight tokens, in the place of its step.
template <int N> __device__ inline void put_chains(const float (&sums)[N][EIGHTS][4]) {
    for (int c = 0; c < N; c++)
        for (int j = 0; j < EIGHTS; j++)
            for (int i = 0; i < 4; i++) few_steps()[warp()].chains[c][WARP * (4 * j + i) + lane()] = sums[c][j][i];
}
// Adds all warps' N chains of the thread's number.
template <int N> __device__ inline float add_chains(float total) {
    __syncthreads();                              // the chains of all warps are there
    for (int w = 0; w < 8; w++)
        for (int c = 0; c < N; c++) total += few_steps()[w].chains[c][threadIdx.x];
    __syncthreads();                              // they have been added
    return total;
}
template <class Store>
__device__ inline void store_few(int first_row, int last_row, int n_tokens, float total, Store store) {
    int i = (int)(threadIdx.x / WARP), row = first_row + few_row(lane(), i % 4), t = i / 4 * 8 + few_token(lane(), i % 4);
    if (row < last_row && t < n_tokens) store(row, t, total);
}

// Rows first_row to last_row - 1, 16 at most, times inputs of a tile, 16 at most: store(row, t, number) gets each
// number.
template <template <class, class> class Products, class Rows, class Inputs, class Store>
__device__ inline void multiply_few(Rows rows, int first_row, int last_row, Quantised x, Inputs inputs, Store store) {
    using Shape = FewShape<Rows>;
    FewStep& step = few_steps()[warp()];
    Products<Rows, Inputs> products{rows, x, inputs};
    int n_some = min((inputs.n + 7) / 8, EIGHTS), n_pieces = rows.pieces().n;
    float total = 0.f;
    UNROLL(1)
    for (int pass = 0; pass < WARP; pass += Shape::PASS) {
        float sums[Shape::CHAINS][EIGHTS][4] = {};
        UNROLL(1)
        for (int piece = pass + Shape::CHAINS * warp(); piece < n_pieces; piece += WARP) {
            products.begin(piece);
            put_scales(step, rows, x, inputs, piece);
            decode<Products<Rows, Inputs>::DECODED_AT_ONCE>(step, rows, first_row, last_row, piece);
            __syncwarp();                         // the step is there
            for (int c = 0; c < Shape::CHAINS; c++)
                if (piece + c < n_pieces) add_piece(step, rows, products, c * Shape::PIECE, n_some, sums[c]);
            __syncwarp();                         // nobody reads it any more
        }
        put_chains(sums);
        total = add_chains<Shape::CHAINS>(total);
    }
    store_few(first_row, last_row, inputs.n, total, store);
}
