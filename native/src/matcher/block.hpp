// One attention block: x + MLP([x | attention(x)]). Included by variant.cpp within the variant's namespace.

struct Block {
    int width, heads, key_value_heads, head_dim;
    int dim;  // head_dim with padding
    bool shared, rotary;
    float epsilon;
    Linear projection;  // queries, keys unless they are shared, values; each head padded
    Linear first;       // from [x | message], both padded
    Linear second;
    float *norm_weight, *norm_bias;

    int padded_width() const { return round_up(width, PANEL); }
    int padded_hidden() const { return round_up(2 * width, PANEL); }
};

// Tokens that go through a linear map or the MLP at once: what is between stays in the cache.
constexpr int MOST_ROWS = 224 / TILE * TILE;

// Which dimension of a head a padded place stands for; `head_dim` or more for padding. Where pairs of dimensions are
// turned, the first of each LANES pairs lie in one vector of a panel and the second in the other.
static int dimension_at(int place, bool turned) {
    if (!turned) return place;
    const int pair = place / PANEL * LANES + place % LANES;
    return 2 * pair + (place % PANEL >= LANES);
}

static void* pack_block(const BlockWeights& from) {
    auto* block = allocate_many<Block>(1);
    const int dim = round_up(from.head_dim, PANEL), width = from.width;
    block->width = width, block->heads = from.heads, block->key_value_heads = from.key_value_heads;
    block->head_dim = from.head_dim, block->dim = dim;
    block->shared = from.shared, block->rotary = from.rotary, block->epsilon = from.epsilon;

    // Logits are wanted times log2 e; shared queries and keys have their parts of it.
    const float log2_e = 1.44269504f, root = 1.20112241f;
    const int turning = from.heads + (from.shared ? 0 : from.key_value_heads);
    const auto row_at = [=](int output) {
        const int head = output / dim, place = dimension_at(output % dim, from.rotary && head < turning);
        return place < from.head_dim ? head * from.head_dim + place : -1;
    };
    const auto scale_of = [=](int output) {
        return output / dim >= from.heads ? 1.0f : from.shared ? root : log2_e;
    };
    block->projection = make_linear(
        (turning + from.key_value_heads) * dim, block->padded_width(),
        [&](int output, int input) {
            const int row = row_at(output);
            return row < 0 || input >= width ? 0.0f : scale_of(output) * from.projection[(size_t)row * width + input];
        },
        [&](int output) {
            const int row = row_at(output);
            return row < 0 ? 0.0f : scale_of(output) * from.projection_bias[row];
        });
    const int padded = block->padded_width(), hidden = 2 * width;
    block->first = make_linear(
        block->padded_hidden(), padded + from.heads * dim,
        [&](int output, int input) {
            if (output >= hidden) return 0.0f;
            const float* row = from.first + (size_t)output * hidden;
            if (input < padded) return input < width ? row[input] : 0.0f;
            const int head = (input - padded) / dim, place = (input - padded) % dim;
            return place < from.head_dim ? row[width + head * from.head_dim + place] : 0.0f;
        },
        [&](int output) { return output < hidden ? from.first_bias[output] : 0.0f; });
    block->second = make_linear(
        padded, block->padded_hidden(),
        [&](int output, int input) {
            return output < width && input < hidden ? from.second[(size_t)output * hidden + input] : 0.0f;
        },
        [&](int output) { return output < width ? from.second_bias[output] : 0.0f; });
    block->norm_weight = allocate_many<float>(2 * block->padded_hidden());
    block->norm_bias = block->norm_weight + block->padded_hidden();
    for (int i = 0; i < block->padded_hidden(); ++i) {
        block->norm_weight[i] = i < hidden ? from.norm_weight[i] : 0.0f;
        block->norm_bias[i] = i < hidden ? from.norm_bias[i] : 0.0f;
    }
    return block;
}

static void free_block(void* memory) {
    auto* block = static_cast<Block*>(memory);
    release_linear(block->projection);
    release_linear(block->first);
    release_linear(block->second);
    release(block->norm_weight);
    release(block);
}

// Write queries, keys and values of tokens [start, start + rows) to panels of `stride`.
static void project(
    const Block& block, const BlockCall& call, int start, int rows, Operand* buffer, Operand* heads, ptrdiff_t stride) {
    const ptrdiff_t own_stride = (ptrdiff_t)rows * PANEL;
    pack_left(call.x + (ptrdiff_t)start * block.width, rows, block.width, buffer, own_stride);
    const Linear& map = block.projection;
    const int parts = block.dim / PANEL, half = block.head_dim / 2;
    const int turning = block.rotary ? (block.heads + (block.shared ? 0 : block.key_value_heads)) * parts : 0;
    for (int panel = 0; panel < map.outputs / PANEL; ++panel) {
        Operand* to = heads + panel * stride + (ptrdiff_t)start * PANEL;
        const Vec bias0 = load(map.bias + panel * PANEL), bias1 = load(map.bias + panel * PANEL + LANES);
        const Left x = {buffer, own_stride};
        if (panel < turning) {
            const int pair = panel % parts * LANES, pairs = half - pair;
            const float* cosine = call.cosine + (ptrdiff_t)start * half + pair;
            const float* sine = call.sine + (ptrdiff_t)start * half + pair;
            product(rows, x, map.panel(panel), map.depth, [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
                v0 += bias0, v1 += bias1;
                const Vec c = load_first(cosine + row * half, pairs), s = load_first(sine + row * half, pairs);
                store_operands(to + row * PANEL, v0 * c - v1 * s, v1 * c + v0 * s);
            });
        } else {
            product(rows, x, map.panel(panel), map.depth, [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
                store_operands(to + row * PANEL, v0 + bias0, v1 + bias1);
            });
        }
    }
}

// LayerNorm and GELU of `rows` rows of float panels, written as operands to panels of `to`, which may be `hidden`.
static void normalize_and_activate(const Block& block, int rows, const float* hidden, Operand* to, ptrdiff_t stride) {
    const int width = 2 * block.width, panels = block.padded_hidden() / PANEL;
    const int whole = width / PANEL, rest = width % PANEL;  // entries of the last panel, if it is not whole
    const float share = 1.0f / width;
    for (int row = 0; row < rows; ++row) {
        const float* from = hidden + row * PANEL;
        Vec sum0{}, sum1{};
        for (int panel = 0; panel < panels; ++panel) {
            sum0 += load(from + panel * stride), sum1 += load(from + panel * stride + LANES);
        }
        const Vec mean = sum_everywhere(sum0 + sum1) * share;
        Vec square0{}, square1{};
        for (int panel = 0; panel < whole; ++panel) {
            const Vec v0 = load(from + panel * stride) - mean, v1 = load(from + panel * stride + LANES) - mean;
            square0 = fma(v0, v0, square0), square1 = fma(v1, v1, square1);
        }
        if (rest) {
            const Vec v0 = load(from + whole * stride) - mean, v1 = load(from + whole * stride + LANES) - mean;
            square0 += where_below(v0 * v0, 0, rest, Vec{});
            square1 += where_below(v1 * v1, LANES, rest, Vec{});
        }
        const float variance = (sum_everywhere(square0 + square1) * share)[0];
        const Vec factor = broadcast(1.0f / __builtin_sqrtf(variance + block.epsilon));
        for (int panel = 0; panel < panels; ++panel) {
            const float *weight = block.norm_weight + panel * PANEL, *bias = block.norm_bias + panel * PANEL;
            const Vec v0 = (load(from + panel * stride) - mean) * factor;
            const Vec v1 = (load(from + panel * stride + LANES) - mean) * factor;
            store_operands(
                to + row * PANEL + panel * stride, gelu(fma(v0, load(weight), load(bias))),
                gelu(fma(v1, load(weight + LANES), load(bias + LANES))));
        }
    }
}

// Add MLP([x | message]) to tokens [start, start + rows).
static void run_mlp(
    const Block& block, const BlockCall& call, int start, int rows, Operand* buffer, float* hidden,
    Operand* activated, const Operand* message, ptrdiff_t message_stride) {
    float* x = call.x + (ptrdiff_t)start * block.width;
    // A row more than there are, so that the panels of a token do not fall on the same place of the cache.
    const ptrdiff_t stride = (ptrdiff_t)(round_up(rows, TILE) + 1) * PANEL;
    pack_left(x, rows, block.width, buffer, stride);
    const Linear &first = block.first, &second = block.second;
    const int depth = block.padded_width();
    const Left own = {buffer, stride}, from_others = {message + (ptrdiff_t)start * PANEL, message_stride};
    for (int panel = 0; panel < first.outputs / PANEL; ++panel) {
        float* to = hidden + panel * stride;
        const Vec bias0 = load(first.bias + panel * PANEL), bias1 = load(first.bias + panel * PANEL + LANES);
        product(rows, own, depth, from_others, first.depth - depth, first.panel(panel),
            [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
                store(to + row * PANEL, v0 + bias0);
                store(to + row * PANEL + LANES, v1 + bias1);
            });
    }
    normalize_and_activate(block, rows, hidden, activated, stride);
    for (int panel = 0; panel < second.outputs / PANEL; ++panel) {
        float* to = x + panel * PANEL;
        const int rest = block.width - panel * PANEL;
        const Vec bias0 = load(second.bias + panel * PANEL), bias1 = load(second.bias + panel * PANEL + LANES);
        const Left input = {activated, stride};
        product(rows, input, second.panel(panel), second.depth,
            [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
                float* place = to + (ptrdiff_t)row * block.width;
                if (__builtin_expect(rest >= PANEL, 1)) {
                    store(place, load(place) + (v0 + bias0));
                    store(place + LANES, load(place + LANES) + (v1 + bias1));
                } else {
                    store_first(place, load_first(place, rest) + (v0 + bias0), rest);
                    const int more = rest - LANES;
                    store_first(place + LANES, load_first(place + LANES, more) + (v1 + bias1), more);
                }
            });
    }
}
