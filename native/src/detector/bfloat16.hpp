// 3 x 3 convolutions with products in bfloat16 and sums in float32: AMX's tile products of 32 pixels by 32 channels.
//
// Maps stay float32; a tile's surroundings are rounded when it is computed, 32 channels of a pixel side by side.
// Weights are bfloat16, (panels of 32 channels out, 9, chunks of 32 channels in, 16, 32, 2): the last three are pairs
// of channels in, channels out, and the two of a pair.
constexpr int AROUND = TILE_WIDTH + 2;
constexpr int CHUNK = 6 * AROUND * DEPTH;  // of a tile's surroundings
static_assert(TILE_WIDTH == TILE, "a line of outputs fills the results");

static INLINE int chunks(const Layer& layer) { return ceil_div(layer.in_channels, DEPTH); }
static INLINE size_t out_size(const Layer& layer) { return static_cast<size_t>(4) * TILE_WIDTH * out_width(layer); }
// A layer's memory holds the surroundings of tiles, then their sums.
static INLINE size_t in_floats(const Layer& layer) { return static_cast<size_t>(TILES) * chunks(layer) * CHUNK / 2; }
static INLINE size_t tile_memory(const Layer& layer) { return in_floats(layer) + TILES * out_size(layer); }

// Rounds the surroundings of a tile, the block's ``index``-th.
static void tile_in(const Layer& layer, int index, const Surroundings& from, float* memory) {
    const int width = in_width(layer);
    Operand* out = reinterpret_cast<Operand*>(memory) + static_cast<size_t>(index) * chunks(layer) * CHUNK;
    for (int c = 0; c < width; c += DEPTH) {
        for (int y = 0; y < 6; y++) {
            for (int x = 0; x < AROUND; x++, out += DEPTH) {
                const float* pixel = from.rows[y] + static_cast<ptrdiff_t>(x) * width + c;
                Vec low{}, high{};
                if (x < from.columns) low = load(pixel);
                if (x < from.columns && c + LANES < width) high = load(pixel + LANES);
                store_operands(out, low, high);
            }
        }
    }
}

// Within for_each, which makes the tile registers ready.
static void multiply_tiles(const Layer& layer, int count, float* memory) {
    const int parts = chunks(layer), width = out_width(layer);
    const Operand* in = reinterpret_cast<const Operand*>(memory);
    const Operand* weight = static_cast<const Operand*>(layer.weight);
    float* out = memory + in_floats(layer);
    for (int column = 0; column < width; column += TILE) {
        for (int line = 0; line < 4 * count; line++) {
            const Operand* from = in + line / 4 * static_cast<size_t>(parts) * CHUNK + line % 4 * AROUND * DEPTH;
            const Operand* right = weight;
            Results results;
            results.clear();
            for (int tap = 0; tap < 9; tap++) {
                const Operand* left = from + (tap / 3 * AROUND + tap % 3) * DEPTH;
                for (int part = 0; part < parts; part++, right += DEPTH * TILE) results.add(left + part * CHUNK, right);
            }
            alignas(64) float sums[TILE * TILE];
            results.store_to(sums);
            float* to = out + static_cast<size_t>(line) * TILE_WIDTH * width + column;
            for (int x = 0; x < TILE_WIDTH; x++, to += width) {
                for (int c = 0; c < smaller(TILE, width - column); c += LANES) store(to + c, load(sums + x * TILE + c));
            }
        }
        weight += static_cast<ptrdiff_t>(9) * parts * DEPTH * TILE;
    }
}

// Adds the bias to a tile's 4 x 32 sums (2 x 16 maxima if ``pool``), cuts off what is negative and writes them where
// ``targets`` says, line by line; null leaves a value out.
template <bool pool>
static void tile_out(const Layer& layer, int index, const float* memory, float* const* targets) {
    const int width = out_width(layer), columns = pool ? TILE_WIDTH / 2 : TILE_WIDTH;
    const float* in = memory + in_floats(layer) + index * out_size(layer);
    for (int i = 0; i < (pool ? 2 : 4) * columns; i++) {
        if (!targets[i]) continue;
        const int y = i / columns, x = i % columns;
        const float* from = in + static_cast<size_t>(pool ? 2 * (y * TILE_WIDTH + x) : i) * width;
        const float* below = from + static_cast<size_t>(TILE_WIDTH) * width;
        for (int c = 0; c < width; c += LANES) {
            Vec value = load(from + c);
            if (pool) {
                const Vec lower = maximum(load(below + c), load(below + width + c));
                value = maximum(maximum(value, load(from + width + c)), lower);
            }
            store(targets[i] + c, maximum(value + load(layer.bias + c), Vec{}));
        }
    }
}
