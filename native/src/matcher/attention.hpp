// Softmax attention in blocks of the similarity that stay in the cache.
// Included by variant.cpp within the variant's namespace.
//
// Queries come multiplied by log2 e, so that weights are powers of two. At first nothing is subtracted from the logits:
// as long as all sums of weights lie between 1e-30 and 1e30, none that counts over- or underflows. Where a sum lies
// outside, those rows are computed again with the largest logit of each row subtracted.

constexpr float LOWEST_SUM = 1e-30f, HIGHEST_SUM = 1e30f;

// Rows and columns of a block of weights.
constexpr int BLOCK_ROWS = 112 / TILE * TILE;
constexpr int BLOCK_COLUMNS = 512;

// One head's queries, keys and values of one image.
struct AttentionHead {
    int count;                      // tokens
    const Operand* query;           // left factor
    ptrdiff_t query_stride;
    const Operand* keys;            // right factor: transposed keys, panels of `dim` rows
    const Operand* values;          // right factor
    const Operand* values_left;     // left factor: transposed values
    ptrdiff_t value_stride;         // of both
    Operand* message;               // left factor
    ptrdiff_t message_stride;
};

// A thread's buffers.
struct AttentionScratch {
    Operand* weights;        // left factor, BLOCK_ROWS rows
    Operand* weights_right;  // right factor of the same entries
    float* sums;             // (BLOCK_ROWS, LANES)
    float* shift;            // (BLOCK_ROWS, LANES)
    float* out;              // (dim / PANEL, BLOCK_ROWS, PANEL)

    static size_t bytes(int dim) {
        return (2 * sizeof(Operand) * BLOCK_COLUMNS + sizeof(float) * (2 * LANES + dim)) * BLOCK_ROWS;
    }
    AttentionScratch(void* memory, int dim) {
        weights = static_cast<Operand*>(memory);
        weights_right = RIGHT_IS_LEFT ? weights : weights + BLOCK_ROWS * BLOCK_COLUMNS;
        sums = reinterpret_cast<float*>(weights + 2 * BLOCK_ROWS * BLOCK_COLUMNS);
        shift = sums + BLOCK_ROWS * LANES;
        out = shift + BLOCK_ROWS * LANES;
        static_cast<void>(dim);
    }
};

static INLINE Vec where_below(Vec value, int first, int count, Vec otherwise) {
    return lanes() < broadcast_int(count - first) ? value : otherwise;
}

// For each row the largest logit, in all lanes of `shift`.
static void find_largest(
    const AttentionHead& own, const AttentionHead& other, int first, int rows, int dim, AttentionScratch& scratch) {
    const Vec least = broadcast(-__builtin_inff());
    for (int row = 0; row < rows; ++row) store(scratch.shift + row * LANES, least);
    const Left query = {own.query + (ptrdiff_t)first * PANEL, own.query_stride};
    for (int column = 0; column < other.count; column += PANEL) {
        product(rows, query, other.keys + (ptrdiff_t)column * dim, dim, [&](int row, Vec v0, Vec v1) {
            v0 = where_below(v0, column, other.count, least);
            v1 = where_below(v1, column + LANES, other.count, least);
            float* to = scratch.shift + row * LANES;
            store(to, maximum(load(to), maximum(v0, v1)));
        });
    }
    for (int row = 0; row < rows; ++row) {
        float* to = scratch.shift + row * LANES;
        store(to, maximum_everywhere(load(to)));
    }
}

// Weights of rows and columns of a block; adds to `sums`, and to `column_sums` unless that is null.
template <bool shifted, bool both>
static void compute_weights(
    const AttentionHead& own, const AttentionHead& other, int first, int rows, int first_column, int columns, int dim,
    AttentionScratch& scratch, float* column_sums) {
    const Left query = {own.query + (ptrdiff_t)first * PANEL, own.query_stride};
    for (int column = 0; column < columns; column += PANEL) {
        Operand* to = scratch.weights + column * BLOCK_ROWS;
        Operand* to_right = scratch.weights_right + column * BLOCK_ROWS;
        const bool partial = columns - column < PANEL;
        Vec column0{}, column1{};
        const Operand* keys = other.keys + (ptrdiff_t)(first_column + column) * dim;
        product(rows, query, keys, dim, [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
            if constexpr (shifted) {
                const Vec shift = load(scratch.shift + row * LANES);
                v0 -= shift, v1 -= shift;
            }
            Vec e0 = exp2(v0), e1 = exp2(v1);
            if (__builtin_expect(partial, 0)) {
                e0 = where_below(e0, column, columns, Vec{});
                e1 = where_below(e1, column + LANES, columns, Vec{});
            }
            float* sum = scratch.sums + row * LANES;
            store(sum, load(sum) + (e0 + e1));
            store_operands(to + row * PANEL, e0, e1);
            if constexpr (both) {
                column0 += e0, column1 += e1;
                if constexpr (!RIGHT_IS_LEFT) store_right_row(to_right, row, e0, e1);
            }
        });
        if constexpr (both) {
            if constexpr (!RIGHT_IS_LEFT) end_right_rows(to_right, rows);
            store(column_sums + column, load(column_sums + column) + column0);
            store(column_sums + column + LANES, load(column_sums + column + LANES) + column1);
        }
    }
}

// Add weights times values to `out`, or begin it.
static void gather_values(
    const AttentionHead& other, int rows, int first_column, int columns, int dim, AttentionScratch& scratch) {
    for (int part = 0; part < dim / PANEL; ++part) {
        float* out = scratch.out + part * BLOCK_ROWS * PANEL;
        const Operand* values = other.values + part * other.value_stride + (ptrdiff_t)first_column * PANEL;
        const bool begins = first_column == 0;
        const Left weights = {scratch.weights, BLOCK_ROWS * PANEL};
        product(rows, weights, values, round_up(columns, DEPTH), [&](int row, Vec v0, Vec v1) {
            float* to = out + row * PANEL;
            if (!begins) v0 += load(to), v1 += load(to + LANES);
            store(to, v0);
            store(to + LANES, v1);
        });
    }
}

// Divide by the sums and write the message; false where sums are out of bounds.
static bool finish_rows(const AttentionHead& own, int first, int rows, int dim, AttentionScratch& scratch) {
    bool right = true;
    for (int row = 0; row < rows; ++row) {
        const Vec sum = sum_everywhere(load(scratch.sums + row * LANES));
        right = right && sum[0] > LOWEST_SUM && sum[0] < HIGHEST_SUM;
        const Vec factor = 1.0f / sum;
        for (int part = 0; part < dim / PANEL; ++part) {
            const float* from = scratch.out + (part * BLOCK_ROWS + row) * PANEL;
            Operand* to = own.message + part * own.message_stride + (ptrdiff_t)(first + row) * PANEL;
            store_operands(to, load(from) * factor, load(from + LANES) * factor);
        }
    }
    return right;
}

template <bool shifted>
static bool attend_rows(
    const AttentionHead& own, const AttentionHead& other, int first, int rows, int dim, AttentionScratch& scratch) {
    if (shifted) find_largest(own, other, first, rows, dim, scratch);
    memset(scratch.sums, 0, sizeof(float) * rows * LANES);
    for (int column = 0; column < other.count; column += BLOCK_COLUMNS) {
        const int columns = smaller(BLOCK_COLUMNS, other.count - column);
        compute_weights<shifted, false>(own, other, first, rows, column, columns, dim, scratch, nullptr);
        gather_values(other, rows, column, columns, dim, scratch);
    }
    return finish_rows(own, first, rows, dim, scratch);
}

// Write softmax(query keys^T) values for some rows, at most BLOCK_ROWS, whatever the size of the logits.
static void attend(
    const AttentionHead& own, const AttentionHead& other, int first, int rows, int dim, AttentionScratch& scratch) {
    if (!attend_rows<false>(own, other, first, rows, dim, scratch)) {
        attend_rows<true>(own, other, first, rows, dim, scratch);
    }
}

// What a range of rows adds to the other image's messages, (count / PANEL, dim, PANEL), transposed, and sums, (count).
struct ColumnSums {
    float *out, *sums;

    static size_t floats(int count, int dim) { return (size_t)round_up(count, PANEL) * (dim + 1); }
    ColumnSums(float* memory, int count, int dim) : out(memory), sums(memory + (size_t)round_up(count, PANEL) * dim) {}
};

// Attend from rows of `own`, and add up what these rows give to `other`. False where sums of rows are out of bounds.
static bool attend_both_ways(
    const AttentionHead& own, const AttentionHead& other, int first, int last, int dim, AttentionScratch& scratch,
    float* memory) {
    memset(memory, 0, sizeof(float) * ColumnSums::floats(other.count, dim));
    const ColumnSums totals(memory, other.count, dim);
    bool right = true;
    for (; first < last; first += BLOCK_ROWS) {
        const int rows = smaller(BLOCK_ROWS, last - first);
        memset(scratch.sums, 0, sizeof(float) * rows * LANES);
        for (int start = 0; start < other.count; start += BLOCK_COLUMNS) {
            const int columns = smaller(BLOCK_COLUMNS, other.count - start);
            compute_weights<false, true>(
                own, other, first, rows, start, columns, dim, scratch, totals.sums + start);
            gather_values(other, rows, start, columns, dim, scratch);
            for (int column = 0; column < columns; column += PANEL) {
                const Operand* weights = scratch.weights_right + column * BLOCK_ROWS;
                for (int part = 0; part < dim / PANEL; ++part) {
                    float* out = totals.out + (ptrdiff_t)(start + column) * dim + part * PANEL * PANEL;
                    const LeftTransposed values = {
                        own.values_left + part * own.value_stride + (ptrdiff_t)first * PANEL};
                    product(values, weights, round_up(rows, DEPTH), [&](int row, Vec v0, Vec v1) {
                        float* to = out + row * PANEL;
                        store(to, load(to) + v0);
                        store(to + LANES, load(to + LANES) + v1);
                    });
                }
            }
        }
        right = finish_rows(own, first, rows, dim, scratch) && right;
    }
    return right;
}

// Write the messages of one panel of tokens from the totals of all ranges of rows; false where sums are out of bounds.
static bool finish_columns(const AttentionHead& own, int first, int dim, float* memory, size_t stride, int ranges) {
    const ColumnSums totals(memory, own.count, dim);
    Vec sum0{}, sum1{};
    for (int range = 0; range < ranges; ++range) {
        sum0 += load(totals.sums + range * stride + first);
        sum1 += load(totals.sums + range * stride + first + LANES);
    }
    const int rows = smaller(PANEL, own.count - first);
    alignas(64) float sums[PANEL], square[PANEL * PANEL], turned[PANEL * PANEL];
    store(sums, sum0), store(sums + LANES, sum1);
    bool right = true;
    for (int row = 0; row < rows; ++row) right = right && sums[row] > LOWEST_SUM && sums[row] < HIGHEST_SUM;
    for (int part = 0; part < dim / PANEL; ++part) {
        const float* from = totals.out + (ptrdiff_t)first * dim + part * PANEL * PANEL;
        for (int row = 0; row < PANEL; ++row) {
            Vec v0{}, v1{};
            for (int range = 0; range < ranges; ++range) {
                v0 += load(from + range * stride + row * PANEL);
                v1 += load(from + range * stride + row * PANEL + LANES);
            }
            store(square + row * PANEL, v0 / sum0);
            store(square + row * PANEL + LANES, v1 / sum1);
        }
        transpose_square(square, turned);
        Operand* to = own.message + part * own.message_stride + (ptrdiff_t)first * PANEL;
        for (int row = 0; row < rows; ++row) {
            store_operands(to + row * PANEL, load(turned + row * PANEL), load(turned + row * PANEL + LANES));
        }
    }
    return right;
}
