// Attention in training and its gradients, one head of one image at a time, in products of bfloat16. Included by
// variant.cpp within the variant's namespace, where right factors are not left ones.
//
// With S = scale Q K^T, P = exp(S - logsumexp), O = P V, and the gradient G of O:
//   to V = P^T G,  D = P (G V^T - rowsum(G O)),  to Q = scale D K,  to K = scale D^T Q.
// Weights are computed in blocks of rows, on the way back anew; what rows give to keys and values is added up transposed.

constexpr int GRADIENT_ROWS = 96;
static_assert(GRADIENT_ROWS % TILE == 0, "blocks of rows are whole tiles");

// One head of one image. Rows of tokens are `stride` entries apart.
struct GradientHead {
    const Operand *query, *key, *value, *out, *gradient;
    const float* logsumexp;
    Operand *to_query, *to_key, *to_value;
    int queries, keys, dim;
    ptrdiff_t stride;
    float scale;
};

// A thread's buffers.
struct GradientScratch {
    // Left factors, in panels of `tall` rows; their transposes in squares; and what of packing is not needed.
    Operand *query, *gradient, *query_left, *gradient_left, *unused;
    // Right factors: transposed keys and values, panels of `dim` rows; keys, panels of `wide` rows.
    Operand *keys, *values, *keys_right;
    Operand* rows;                      // of one image, a panel's
    Operand *weights_right, *logits, *logits_right;
    float *weights, *delta, *shift;
    float *to_key, *to_value;           // (wide / PANEL, dim, PANEL)
    int tall, wide;

    static size_t bytes(int queries, int keys, int dim) {
        const size_t tall = round_up(queries, PANEL), wide = round_up(keys, PANEL), most = tall > wide ? tall : wide;
        const size_t operands = 4 * tall * dim + most * PANEL + 3 * wide * dim + most * PANEL +
                                GRADIENT_ROWS * (2 * PANEL + wide);
        const size_t floats = GRADIENT_ROWS * PANEL + 2 * tall + 2 * wide * dim;
        return operands * sizeof(Operand) + floats * sizeof(float);
    }
    GradientScratch(void* memory, int queries, int keys_count, int dim)
        : tall(round_up(queries, PANEL)), wide(round_up(keys_count, PANEL)) {
        Operand* next = static_cast<Operand*>(memory);
        const auto take = [&](size_t count) {
            Operand* taken = next;
            next += count;
            return taken;
        };
        const size_t of_queries = (size_t)tall * dim, of_keys = (size_t)wide * dim, most = larger(tall, wide);
        query = take(of_queries), gradient = take(of_queries);
        query_left = take(of_queries), gradient_left = take(of_queries);
        unused = take(most * PANEL);
        keys = take(of_keys), values = take(of_keys), keys_right = take(of_keys);
        rows = take(most * PANEL);
        weights_right = take(GRADIENT_ROWS * PANEL), logits_right = take(GRADIENT_ROWS * PANEL);
        logits = take((size_t)GRADIENT_ROWS * wide);
        float* numbers = reinterpret_cast<float*>(next);
        weights = numbers, numbers += GRADIENT_ROWS * PANEL;
        delta = numbers, numbers += tall;
        shift = numbers, numbers += tall;
        to_key = numbers, numbers += of_keys;
        to_value = numbers;
    }
};

// Copy PANEL entries of each of `count` rows into a panel; zeros in the rows up to a multiple of PANEL.
static void copy_panel(const Operand* from, ptrdiff_t stride, int count, Operand* to) {
    for (int row = 0; row < count; ++row) memcpy(to + row * PANEL, from + row * stride, sizeof(Operand) * PANEL);
    memset(to + (ptrdiff_t)count * PANEL, 0, sizeof(Operand) * PANEL * (round_up(count, PANEL) - count));
}

static INLINE Vec widened(const Operand* from) {
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
}

// From a panel of keys or values: its transpose as right factor, one square of each panel of `dim` rows.
static void pack_columns(const Operand* rows, int count, int dim, Operand* to) {
    for (int first = 0; first < count; first += PANEL) {
        pack_right_transposed(rows + first * PANEL, smaller(PANEL, count - first), to + (ptrdiff_t)first * dim);
    }
}

static void pack_gradient(const GradientHead& head, GradientScratch& scratch) {
    for (int part = 0; part < head.dim / PANEL; ++part) {
        const ptrdiff_t at = (ptrdiff_t)part * PANEL, tall = at * scratch.tall, wide = at * scratch.wide;
        copy_panel(head.query + at, head.stride, head.queries, scratch.query + tall);
        pack_values(scratch.query + tall, head.queries, scratch.unused, scratch.query_left + tall);
        copy_panel(head.gradient + at, head.stride, head.queries, scratch.gradient + tall);
        pack_values(scratch.gradient + tall, head.queries, scratch.unused, scratch.gradient_left + tall);
        copy_panel(head.key + at, head.stride, head.keys, scratch.rows);
        pack_values(scratch.rows, head.keys, scratch.keys_right + wide, scratch.unused);
        pack_columns(scratch.rows, head.keys, head.dim, scratch.keys + at * PANEL);
        copy_panel(head.value + at, head.stride, head.keys, scratch.rows);
        pack_columns(scratch.rows, head.keys, head.dim, scratch.values + at * PANEL);
    }
    for (int row = 0; row < head.queries; ++row) {
        const Operand *out = head.out + row * head.stride, *gradient = head.gradient + row * head.stride;
        Vec sum{};
        for (int k = 0; k < head.dim; k += LANES) sum = fma(widened(out + k), widened(gradient + k), sum);
        scratch.delta[row] = sum_of(sum);
        scratch.shift[row] = head.logsumexp[row] * LOG2_E;
    }
    const size_t floats = (size_t)scratch.wide * head.dim;
    memset(scratch.to_key, 0, sizeof(float) * floats);
    memset(scratch.to_value, 0, sizeof(float) * floats);
}

// Add a transposed left factor of `rows` rows times a right factor to (dim, PANEL) sums.
static INLINE void add_transposed(const Operand* left, ptrdiff_t stride, const Operand* right, int rows, int dim, float* sums) {
    for (int part = 0; part < dim / PANEL; ++part, sums += PANEL * PANEL) {
        product(LeftTransposed{left + part * stride}, right, round_up(rows, DEPTH), [&](int row, Vec v0, Vec v1) {
            float* to = sums + row * PANEL;
            store(to, load(to) + v0);
            store(to + LANES, load(to + LANES) + v1);
        });
    }
}

static void gradient_of_rows(const GradientHead& head, int first, int rows, GradientScratch& scratch) {
    const int dim = head.dim;
    const ptrdiff_t tall = (ptrdiff_t)PANEL * scratch.tall, from = (ptrdiff_t)first * PANEL;
    const Vec factor = broadcast(head.scale * LOG2_E);
    const float *shift = scratch.shift + first, *delta = scratch.delta + first;
    for (int column = 0; column < head.keys; column += PANEL) {
        const bool partial = head.keys - column < PANEL;
        const ptrdiff_t panel = (ptrdiff_t)column * dim;
        product(rows, Left{scratch.query + from, tall}, scratch.keys + panel, dim,
                [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
            const Vec less = broadcast(-shift[row]);
            Vec e0 = exp2(fma(v0, factor, less)), e1 = exp2(fma(v1, factor, less));
            if (__builtin_expect(partial, 0)) {
                e0 = where_below(e0, column, head.keys, Vec{});
                e1 = where_below(e1, column + LANES, head.keys, Vec{});
            }
            store(scratch.weights + row * PANEL, e0);
            store(scratch.weights + row * PANEL + LANES, e1);
            store_right_row(scratch.weights_right, row, e0, e1);
        });
        end_right_rows(scratch.weights_right, rows);
        Operand* logits = scratch.logits + (ptrdiff_t)column * GRADIENT_ROWS;
        product(rows, Left{scratch.gradient + from, tall}, scratch.values + panel, dim,
                [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
            const Vec less = broadcast(delta[row]);
            const float* weights = scratch.weights + row * PANEL;
            const Vec d0 = load(weights) * (v0 - less), d1 = load(weights + LANES) * (v1 - less);
            store_operands(logits + row * PANEL, d0, d1);
            store_right_row(scratch.logits_right, row, d0, d1);
        });
        end_right_rows(scratch.logits_right, rows);
        add_transposed(scratch.gradient_left + from, tall, scratch.weights_right, rows, dim, scratch.to_value + panel);
        add_transposed(scratch.query_left + from, tall, scratch.logits_right, rows, dim, scratch.to_key + panel);
    }
    const Vec scale = broadcast(head.scale);
    for (int part = 0; part < dim / PANEL; ++part) {
        const Operand* keys = scratch.keys_right + (ptrdiff_t)part * PANEL * scratch.wide;
        product(rows, Left{scratch.logits, GRADIENT_ROWS * PANEL}, keys, round_up(head.keys, DEPTH),
                [&](int row, Vec v0, Vec v1) {
            store_operands(head.to_query + (first + row) * head.stride + part * PANEL, v0 * scale, v1 * scale);
        });
    }
}

// Write `count` rows from sums that are transposed.
static void finish_gradient(const float* sums, int count, int dim, float scale, Operand* to, ptrdiff_t stride) {
    alignas(64) float turned[PANEL * PANEL];
    const Vec factor = broadcast(scale);
    for (int first = 0; first < count; first += PANEL) {
        for (int part = 0; part < dim / PANEL; ++part) {
            transpose_square(sums + (ptrdiff_t)first * dim + part * PANEL * PANEL, turned);
            for (int row = 0; row < smaller(PANEL, count - first); ++row) {
                const float* from = turned + row * PANEL;
                store_operands(to + (first + row) * stride + part * PANEL, load(from) * factor,
                               load(from + LANES) * factor);
            }
        }
    }
}

// Where one head of one image begins, in tensors (images, tokens, heads, dim).
template <class Call>
static INLINE ptrdiff_t place_of(const Call& call, int index, int tokens) {
    return ((ptrdiff_t)(index / call.heads) * tokens * call.heads + index % call.heads) * call.dim;
}

// Call function(index, memory) for each head of each image, with `bytes` of memory for each thread.
template <class Call, class Function>
static void for_each_head(const Call& call, size_t bytes, const Function& function) {
    bytes = (bytes + 63) / 64 * 64;
    char* memory = static_cast<char*>(allocate(bytes * call.threads));
    for_each(call.images * call.heads, call.threads,
             [&](int index, int thread) { function(index, memory + bytes * thread); });
    release(memory);
}

static void attention_gradient(const AttentionGradientCall& call) {
    const int dim = call.dim;
    const ptrdiff_t stride = (ptrdiff_t)call.heads * dim;
    for_each_head(call, GradientScratch::bytes(call.queries, call.keys, dim), [&](int index, void* memory) {
        const ptrdiff_t query = place_of(call, index, call.queries), key = place_of(call, index, call.keys);
        const GradientHead head = {
            call.query + query, call.key + key, call.value + key, call.out + query, call.gradient + query,
            call.logsumexp + (ptrdiff_t)index * call.queries, call.to_query + query, call.to_key + key,
            call.to_value + key, call.queries, call.keys, dim, stride, call.scale};
        GradientScratch scratch(memory, call.queries, call.keys, dim);
        pack_gradient(head, scratch);
        for (int first = 0; first < head.queries; first += GRADIENT_ROWS) {
            gradient_of_rows(head, first, smaller(GRADIENT_ROWS, head.queries - first), scratch);
        }
        finish_gradient(scratch.to_key, head.keys, dim, head.scale, head.to_key, stride);
        finish_gradient(scratch.to_value, head.keys, dim, 1.0f, head.to_value, stride);
    });
}

// A thread's buffers on the way forward, named as in GradientScratch.
struct ForwardScratch {
    Operand *query, *keys, *values_right, *rows, *unused, *weights;
    float *sums, *shift;  // (GRADIENT_ROWS, LANES), (GRADIENT_ROWS)
    int tall, wide;

    static size_t bytes(int queries, int keys, int dim) {
        const size_t tall = round_up(queries, PANEL), wide = round_up(keys, PANEL);
        return sizeof(Operand) * (tall * dim + 2 * wide * dim + 2 * wide * PANEL + GRADIENT_ROWS * wide) +
               sizeof(float) * GRADIENT_ROWS * (LANES + 1);
    }
    ForwardScratch(void* memory, int queries, int keys_count, int dim)
        : tall(round_up(queries, PANEL)), wide(round_up(keys_count, PANEL)) {
        query = static_cast<Operand*>(memory);
        keys = query + (size_t)tall * dim;
        values_right = keys + (size_t)wide * dim;
        rows = values_right + (size_t)wide * dim;
        unused = rows + (size_t)wide * PANEL;
        weights = unused + (size_t)wide * PANEL;
        sums = reinterpret_cast<float*>(weights + (size_t)GRADIENT_ROWS * wide);
        shift = sums + GRADIENT_ROWS * LANES;
    }
};

// Call epilogue(row, column, v0, v1) with the logits times log2 e of a block of rows, panel by panel.
template <class Epilogue>
static INLINE void for_each_logit(const AttentionForwardCall& call, int first, int rows, const ForwardScratch& scratch,
                                  const Epilogue& epilogue) {
    const Vec factor = broadcast(call.scale * LOG2_E);
    const Left query = {scratch.query + (ptrdiff_t)first * PANEL, (ptrdiff_t)PANEL * scratch.tall};
    for (int column = 0; column < call.keys; column += PANEL) {
        product(rows, query, scratch.keys + (ptrdiff_t)column * call.dim, call.dim,
                [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
            epilogue(row, column, v0 * factor, v1 * factor);
        });
    }
}

// Weights of a block of rows and their sums; false where a sum is out of bounds.
static bool weigh(const AttentionForwardCall& call, int first, int rows, ForwardScratch& scratch) {
    memset(scratch.sums, 0, sizeof(float) * rows * LANES);
    for_each_logit(call, first, rows, scratch, [&](int row, int column, Vec v0, Vec v1) __attribute__((always_inline)) {
        const Vec shift = broadcast(scratch.shift[row]);
        Vec e0 = exp2(v0 - shift), e1 = exp2(v1 - shift);
        if (__builtin_expect(call.keys - column < PANEL, 0)) {
            e0 = where_below(e0, column, call.keys, Vec{});
            e1 = where_below(e1, column + LANES, call.keys, Vec{});
        }
        float* sum = scratch.sums + row * LANES;
        store(sum, load(sum) + (e0 + e1));
        store_operands(scratch.weights + (ptrdiff_t)column * GRADIENT_ROWS + row * PANEL, e0, e1);
    });
    bool right = true;
    for (int row = 0; row < rows; ++row) {
        const float sum = scratch.sums[row * LANES] = sum_of(load(scratch.sums + row * LANES));
        right = right && sum > LOWEST_SUM && sum < HIGHEST_SUM;
    }
    return right;
}

static void attention_forward(const AttentionForwardCall& call) {
    const int dim = call.dim;
    const ptrdiff_t stride = (ptrdiff_t)call.heads * dim;
    for_each_head(call, ForwardScratch::bytes(call.queries, call.keys, dim), [&](int index, void* memory) {
        const ptrdiff_t query = place_of(call, index, call.queries), key = place_of(call, index, call.keys);
        ForwardScratch scratch(memory, call.queries, call.keys, dim);
        for (int part = 0; part < dim / PANEL; ++part) {
            const ptrdiff_t at = (ptrdiff_t)part * PANEL;
            copy_panel(call.query + query + at, stride, call.queries, scratch.query + at * scratch.tall);
            copy_panel(call.key + key + at, stride, call.keys, scratch.rows);
            pack_columns(scratch.rows, call.keys, dim, scratch.keys + at * PANEL);
            copy_panel(call.value + key + at, stride, call.keys, scratch.rows);
            pack_values(scratch.rows, call.keys, scratch.values_right + at * scratch.wide, scratch.unused);
        }
        for (int first = 0; first < call.queries; first += GRADIENT_ROWS) {
            const int rows = smaller(GRADIENT_ROWS, call.queries - first);
            memset(scratch.shift, 0, sizeof(float) * rows);
            if (!weigh(call, first, rows, scratch)) {
                for (int row = 0; row < rows; ++row) scratch.shift[row] = -__builtin_inff();
                const Vec least = broadcast(-__builtin_inff());
                for_each_logit(call, first, rows, scratch, [&](int row, int column, Vec v0, Vec v1) {
                    v0 = where_below(v0, column, call.keys, least);
                    v1 = where_below(v1, column + LANES, call.keys, least);
                    const float largest = maximum_of(maximum(v0, v1));
                    if (largest > scratch.shift[row]) scratch.shift[row] = largest;
                });
                weigh(call, first, rows, scratch);
            }
            for (int part = 0; part < dim / PANEL; ++part) {
                product(rows, Left{scratch.weights, GRADIENT_ROWS * PANEL},
                        scratch.values_right + (ptrdiff_t)part * PANEL * scratch.wide, round_up(call.keys, DEPTH),
                        [&](int row, Vec v0, Vec v1) {
                    const Vec factor = broadcast(1.0f / scratch.sums[row * LANES]);
                    store_operands(call.out + query + (first + row) * stride + part * PANEL, v0 * factor, v1 * factor);
                });
            }
            float* logsumexp = call.logsumexp + (ptrdiff_t)index * call.queries + first;
            for (int row = 0; row < rows; ++row) {
                logsumexp[row] = scratch.shift[row] / LOG2_E + __builtin_logf(scratch.sums[row * LANES]);
            }
        }
    });
}
