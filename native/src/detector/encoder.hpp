// The encoder: pairs of 3 x 3 convolutions with ReLU, 2 x 2 maxima between the pairs.
//
// Rows of the last map are asked for in bands; each layer computes what the next one asks for and keeps only the rows
// that will be needed again. So memory is bounded by a band, and maps that fit stay in the caches. The first layer has
// one channel in and is computed directly, as input of the second layer's tiles, and never stored.

constexpr int MAX_LAYERS = 32;

// Pixels that the first layer computes together.
constexpr int PIXELS = LANES == 16 ? 13 : 6;
constexpr int FIRST_WIDTH = (TILE_WIDTH * TILES + 2 + PIXELS - 1) / PIXELS * PIXELS;

template <int panels>
static INLINE void first_pixels(const float* __restrict in, int in_stride, const Layer& layer, int column,
                                 float* __restrict out) {
    constexpr int vectors = panels * VECTORS;
    const int width = out_width(layer);
    const float* weight = static_cast<const float*>(layer.weight) + column;
    Vec sums[PIXELS][vectors];
    for (int p = 0; p < PIXELS; p++)
        for (int v = 0; v < vectors; v++) sums[p][v] = load(layer.bias + column + v * LANES);
    for (int y = 0; y < 3; y++) {
        for (int x = 0; x < 3; x++) {
            Vec weights[vectors];
            for (int v = 0; v < vectors; v++) weights[v] = load(weight + (3 * y + x) * width + v * LANES);
#pragma GCC unroll 16
            for (int p = 0; p < PIXELS; p++) {
                const float value = in[y * in_stride + x + p];
                for (int v = 0; v < vectors; v++) sums[p][v] += weights[v] * value;
            }
        }
    }
    for (int p = 0; p < PIXELS; p++)
        for (int v = 0; v < vectors; v++) store(out + p * width + column + v * LANES, maximum(sums[p][v], Vec{}));
}

// The first layer around ``count`` tiles of one row of tiles: six rows of TILE_WIDTH count + 2 pixels, zeros beyond the
// image.
static void first_layer(const Layer& layer, const GrayImage& image, int tile_y, int tile_x, int count, float* out) {
    constexpr int in_stride = FIRST_WIDTH + 2;
    const int width = out_width(layer), columns = TILE_WIDTH * count + 2;
    const int top = 4 * tile_y - 2, left = TILE_WIDTH * tile_x - 2;
    float window[8 * in_stride];
    for (int y = 0; y < 8; y++) {
        const bool inside = top + y >= 0 && top + y < image.height;
        const float* from = image.data + (top + y) * image.stride + left;
        for (int x = 0; x < in_stride; x++) {
            window[y * in_stride + x] = inside && left + x >= 0 && left + x < image.width ? from[x] : 0.0f;
        }
    }
    for (int y = 0; y < 6; y++) {
        float* row = out + static_cast<ptrdiff_t>(y) * FIRST_WIDTH * width;
        if (top + 1 + y < 0 || top + 1 + y >= image.height) {
            fill_zero(row, static_cast<size_t>(columns) * width);
            continue;
        }
        for (int x = 0; x < columns; x += PIXELS) {
            const float* from = window + y * in_stride + x;
            int column = 0;
            for (; column + PANELS * PANEL <= width; column += PANELS * PANEL)
                first_pixels<PANELS>(from, in_stride, layer, column, row + static_cast<ptrdiff_t>(x) * width);
            for (; column < width; column += PANEL)
                first_pixels<1>(from, in_stride, layer, column, row + static_cast<ptrdiff_t>(x) * width);
        }
        if (left + 1 < 0) fill_zero(row, width);
        const int last = smaller(columns, larger(0, image.width - (left + 1)));
        fill_zero(row + static_cast<ptrdiff_t>(last) * width, static_cast<size_t>(columns - last) * width);
    }
}

struct Encoder {
    const GrayImage* image;
    const Layer* first;
    const Layer* layers;  // without the first
    int count;             // of those
    const float* zeros;    // a row of them
    float* scratch;        // of each thread
    size_t scratch_size;
    int threads;
    bool dry;              // only find out which rows have to be kept
    int height[MAX_LAYERS], width[MAX_LAYERS];  // of each layer's input
    int done[MAX_LAYERS];   // rows of tiles of each layer
    Rows out[MAX_LAYERS];

    // After the second layer of each pair but the last one.
    bool pools(int layer) const { return layer % 2 == 0 && layer < count - 1; }
    int rows_done(int layer) const {
        const int rows = (pools(layer) ? 2 : 4) * done[layer];
        return smaller(rows, pools(layer) ? height[layer] / 2 : height[layer]);
    }

    void start() {
        for (int i = 0; i < count; i++) {
            height[i] = i == 0 ? image->height : pools(i - 1) ? height[i - 1] / 2 : height[i - 1];
            width[i] = i == 0 ? image->width : pools(i - 1) ? width[i - 1] / 2 : width[i - 1];
            done[i] = 0;
        }
    }

    // Makes sure that the first ``rows`` rows of a layer's output have been computed.
    void advance(int layer, int rows) {
        const int from = done[layer], to = ((pools(layer) ? 2 * rows : rows) + 3) / 4;
        if (to <= from) return;
        if (layer > 0) {
            advance(layer - 1, smaller(height[layer], 4 * to + 1));
            if (dry) {
                const int kept = rows_done(layer - 1) - larger(0, 4 * from - 1);
                out[layer - 1].capacity = larger(out[layer - 1].capacity, kept);
            }
        }
        if (!dry) compute(layer, from, to);
        done[layer] = to;
    }

    int tiles_across(int layer) const {
        return ceil_tiles(pools(layer) ? width[layer] / 2 * 2 : width[layer]);
    }

    void compute(int layer, int from, int to) {
        const int across = tiles_across(layer), all = across * (to - from);
        // The first layer's pixels are shared along a row of tiles only.
        const int pieces = (across + TILES - 1) / TILES;
        const int blocks = layer == 0 ? pieces * (to - from) : (all + TILES - 1) / TILES;
        for_each(blocks, threads, [&](int block, int thread) {
            float* memory = scratch + thread * scratch_size;
            if (layer == 0) {
                const int row = block / pieces, piece = block % pieces;
                const int left = across * piece / pieces, right = across * (piece + 1) / pieces;
                tiles(layer, (from + row) * across + left, right - left, memory);
            } else {
                const int first_tile = static_cast<int>(static_cast<long long>(all) * block / blocks);
                const int end = static_cast<int>(static_cast<long long>(all) * (block + 1) / blocks);
                tiles(layer, from * across + first_tile, end - first_tile, memory);
            }
        });
    }

    // Computes tiles, counted row by row.
    void tiles(int index, int first_tile, int tile_count, float* memory) {
        const Layer& layer = layers[index];
        const int across = tiles_across(index), width = in_width(layer);
        float* pixels = memory + tile_memory(layer);
        if (index == 0) first_layer(*first, *image, first_tile / across, first_tile % across, tile_count, pixels);
        for (int i = 0; i < tile_count; i++) {
            if (index > 0) {
                const int y = (first_tile + i) / across, x = (first_tile + i) % across;
                tile_in(layer, i, surroundings(out[index - 1], height[index], zeros, y, x), memory);
                continue;
            }
            Surroundings from;
            from.columns = TILE_WIDTH + 2;
            for (int y = 0; y < 6; y++) {
                from.rows[y] = pixels + (static_cast<ptrdiff_t>(y) * FIRST_WIDTH + i * TILE_WIDTH) * width;
            }
            tile_in(layer, i, from, memory);
        }
        multiply_tiles(layer, tile_count, memory);
        const bool pool = pools(index);
        const int rows = pool ? 2 : 4, columns = pool ? TILE_WIDTH / 2 : TILE_WIDTH;
        const int out_height = pool ? height[index] / 2 : height[index];
        for (int i = 0; i < tile_count; i++) {
            const int y = (first_tile + i) / across * rows, x = (first_tile + i) % across * columns;
            float* targets[4 * TILE_WIDTH];
            for (int r = 0; r < rows; r++) {
                for (int c = 0; c < columns; c++) {
                    const bool inside = y + r < out_height && x + c < out[index].width;
                    targets[columns * r + c] =
                        inside ? out[index].at(y + r) + static_cast<ptrdiff_t>(x + c) * out[index].channels : nullptr;
                }
            }
            if (pool) tile_out<true>(layer, i, memory, targets);
            else tile_out<false>(layer, i, memory, targets);
        }
    }
};

// Computes the encoder's last map (rows of ``encoded``, zeroed before).
static void encode(const GrayImage& image, const Layer* layers, int count, int band, int threads, float* encoded) {
    Encoder encoder;
    encoder.image = &image;
    encoder.first = layers;
    encoder.layers = layers + 1;
    encoder.count = count - 1;
    encoder.threads = threads;
    encoder.start();
    const int last = count - 2, rows = encoder.height[last];
    for (int i = 0; i <= last; i++) {
        const int width = encoder.width[i];
        encoder.out[i].width = encoder.pools(i) ? width / 2 : width;
        encoder.out[i].channels = out_width(encoder.layers[i]);
        encoder.out[i].capacity = 0;
    }
    encoder.dry = true;
    for (int row = 0; row < rows; row += band) encoder.advance(last, smaller(rows, row + band));
    encoder.start();
    encoder.dry = false;
    encoder.out[last].capacity = rows;
    encoder.out[last].data = encoded;
    Floats kept[MAX_LAYERS];
    size_t widest = 0;
    encoder.scratch_size = 0;
    for (int i = 0; i <= last; i++) {
        const Rows& out = encoder.out[i];
        widest = widest > out.stride() ? widest : out.stride();
        const size_t pixels = i == 0 ? static_cast<size_t>(6) * FIRST_WIDTH * in_width(encoder.layers[0]) : 0;
        const size_t needed = tile_memory(encoder.layers[i]) + pixels;
        if (needed > encoder.scratch_size) encoder.scratch_size = needed;
        if (i == last) continue;
        kept[i].reserve(out.stride() * out.capacity);
        fill_zero(kept[i].data, out.stride() * out.capacity);
        encoder.out[i].data = kept[i].data;
    }
    Floats zeros(widest), scratch(encoder.scratch_size * threads);
    fill_zero(zeros.data, widest);
    encoder.zeros = zeros.data;
    encoder.scratch = scratch.data;
    for (int row = 0; row < rows; row += band) encoder.advance(last, smaller(rows, row + band));
}
