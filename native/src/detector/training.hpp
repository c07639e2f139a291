// What training needs of 3 x 3 convolutions with ReLU, by the same minimal filtering as winograd.hpp: the way forward,
// and gradients of input and weights. The gradient of the transformed weights is a sum over tiles of products of the
// transformed input and the transformed gradient; the way back from it to 3 x 3 is the caller's.
//
// Maps are (images, height, width, channels) without padding; channels are multiples of PANEL.

// Tiles whose transforms lie side by side while the gradient of the weights is summed.
constexpr int GRADIENT_TILES = 48;

// Where a batch of maps is cut into tiles of 4 x 4.
struct TileGrid {
    int height, width, rows, columns, count;
    explicit TileGrid(const Maps& maps)
        : height(maps.height), width(maps.width), rows(ceil_div(maps.height, 4)), columns(ceil_div(maps.width, 4)),
          count(maps.count * rows * columns) {}
    // The image of a tile, and its first pixel.
    void place(int tile, int* image, int* y, int* x) const {
        *image = tile / (rows * columns);
        *y = tile / columns % rows * 4;
        *x = tile % columns * 4;
    }
};

static INLINE const float* pixel(const Maps& maps, int image, int y, int x) {
    const ptrdiff_t row = static_cast<ptrdiff_t>(image) * maps.height + y;
    return maps.data + (row * maps.width + x) * maps.channels;
}

// Pointers to ``side`` x ``side`` pixels from (y, x) on; ``zeros`` for those outside.
template <int side>
static INLINE void window(const Maps& maps, int image, int y, int x, const float* zeros, const float** out) {
    for (int r = 0; r < side; r++) {
        for (int c = 0; c < side; c++) {
            const bool inside = y + r >= 0 && y + r < maps.height && x + c >= 0 && x + c < maps.width;
            out[side * r + c] = inside ? pixel(maps, image, y + r, x + c) : zeros;
        }
    }
}

// The input's transform of a tile.
static void transform_pixels(const float* const* pixels, int channels, size_t stride, float* out) {
    transform_window([&](int y, int x) { return pixels[6 * y + x]; }, channels, stride, out);
}

// The transpose of transform_output: four values to six.
static INLINE void transform_gradient(const Vec* g, int step, Vec* out, int out_step) {
    const Vec even1 = g[0] + 0.5f * g[2 * step], odd1 = ROOT_HALF * (g[step] + 0.5f * g[3 * step]);
    const Vec even2 = g[0] + 2.0f * g[2 * step], odd2 = ROOT_TWO * (g[step] + 2.0f * g[3 * step]);
    out[0] = g[0];
    out[out_step] = even1 + odd1;
    out[2 * out_step] = even1 - odd1;
    out[3 * out_step] = even2 + odd2;
    out[4 * out_step] = even2 - odd2;
    out[5 * out_step] = g[3 * step];
}

// The gradient's transform of a tile of 4 x 4.
static void transform_gradients(const float* const* pixels, int channels, size_t stride, float* out) {
    for (int c = 0; c < channels; c += LANES) {
        Vec between[24];
        for (int x = 0; x < 4; x++) {
            Vec column[4];
            for (int y = 0; y < 4; y++) column[y] = load(pixels[4 * y + x] + c);
            transform_gradient(column, 1, between + x, 4);
        }
        for (int y = 0; y < 6; y++) {
            Vec line[6];
            transform_gradient(between + 4 * y, 1, line, 1);
            for (int x = 0; x < 6; x++) store(out + (6 * y + x) * stride + c, line[x]);
        }
    }
}

// out = input * weight (and bias and ReLU, if there is a bias), pooled = its 2 x 2 maxima, unless null.
static void convolve(const Maps& input, const Layer& layer, int threads, float* out, float* pooled) {
    const TileGrid grid(input);
    const int blocks = ceil_div(grid.count, TILES), width = layer.out_channels;
    const size_t size = tile_memory(layer);
    Floats memory(size * threads), zeros(layer.in_channels);
    fill_zero(zeros.data, layer.in_channels);
    for_each(blocks, threads, [&](int block, int thread) {
        float* scratch = memory.data + thread * size;
        const int first = block * TILES, count = smaller(TILES, grid.count - first);
        int image, y, x;
        for (int i = 0; i < count; i++) {
            const float* pixels[36];
            grid.place(first + i, &image, &y, &x);
            window<6>(input, image, y - 1, x - 1, zeros.data, pixels);
            transform_pixels(pixels, layer.in_channels, in_stride(layer), scratch + i * layer.in_channels);
        }
        multiply_tiles(layer, count, scratch);
        for (int i = 0; i < count; i++) {
            grid.place(first + i, &image, &y, &x);
            float* targets[16];
            for (int p = 0; p < 16; p++) {
                const int row = y + p / 4, column = x + p % 4;
                const ptrdiff_t place = (static_cast<ptrdiff_t>(image) * grid.height + row) * grid.width + column;
                targets[p] = row < grid.height && column < grid.width ? out + place * width : nullptr;
            }
            if (layer.bias) tile_out<false>(layer, i, scratch, targets);
            else tile_out<false, true>(layer, i, scratch, targets);
            if (!pooled) continue;
            for (int p = 0; p < 4; p++) {
                const int row = y / 2 + p / 2, column = x / 2 + p % 2;
                if (row >= grid.height / 2 || column >= grid.width / 2) continue;
                float* const* from = targets + p / 2 * 8 + p % 2 * 2;
                float* to = pooled + ((static_cast<ptrdiff_t>(image) * (grid.height / 2) + row) * (grid.width / 2) +
                                      column) * width;
                for (int c = 0; c < width; c += LANES) {
                    const Vec top = maximum(load(from[0] + c), load(from[1] + c));
                    store(to + c, maximum(top, maximum(load(from[4] + c), load(from[5] + c))));
                }
            }
        }
    });
}

static INLINE Vec where(VecInt mask, Vec value) { return (Vec)(mask & (VecInt)value); }

// The gradient before ReLU (and before 2 x 2 maxima, if ``pooled``), and its sum over all pixels, the bias's.
static void gate(const Maps& output, const float* gradient, bool pooled, float* out, float* bias) {
    const int channels = output.channels, height = output.height, width = output.width;
    const Vec zero = Vec{};
    fill_zero(bias, channels);
    if (!pooled) {
        const ptrdiff_t pixels = static_cast<ptrdiff_t>(output.count) * height * width;
        for (ptrdiff_t p = 0; p < pixels; p++) {
            for (int c = 0; c < channels; c += LANES) {
                const ptrdiff_t at = p * channels + c;
                const Vec value = where(load(output.data + at) > zero, load(gradient + at));
                store(out + at, value);
                store(bias + c, load(bias + c) + value);
            }
        }
        return;
    }
    // What is left over at the right and bottom edge reached no maximum.
    if (height % 2 || width % 2) fill_zero(out, static_cast<size_t>(output.count) * height * width * channels);
    const ptrdiff_t right = channels, below = static_cast<ptrdiff_t>(width) * channels;
    for (int row = 0; row < output.count * (height / 2); row++) {
        const int image = row / (height / 2), y = row % (height / 2) * 2;
        for (int x = 0; x < width / 2; x++) {
            const ptrdiff_t at = ((static_cast<ptrdiff_t>(image) * height + y) * width + 2 * x) * channels;
            const float* from = gradient + (static_cast<ptrdiff_t>(row) * (width / 2) + x) * channels;
            for (int c = 0; c < channels; c += LANES) {
                const ptrdiff_t places[4] = {at + c, at + c + right, at + c + below, at + c + below + right};
                Vec values[4];
                for (int i = 0; i < 4; i++) values[i] = load(output.data + places[i]);
                const Vec most = maximum(maximum(values[0], values[1]), maximum(values[2], values[3]));
                const Vec value = where(most > zero, load(from + c));
                // The first of equal ones gets it all.
                VecInt free = ~VecInt{};
                for (int i = 0; i < 4; i++) {
                    const VecInt here = free & (VecInt)(values[i] == most);
                    store(out + places[i], where(here, value));
                    free &= ~here;
                }
                store(bias + c, load(bias + c) + value);
            }
        }
    }
}

// c (rows of ``first`` on, panels of ``column`` on) += a^T b over ``depth`` tiles.
template <int rows, int panels>
static INLINE void accumulate_block(int depth, const float* __restrict a, int a_stride, const float* __restrict b,
                                    int b_stride, float* __restrict c, int c_stride) {
    constexpr int vectors = panels * VECTORS;
    Vec sums[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = load(c + r * c_stride + v * LANES);
    for (int k = 0; k < depth; k++) {
        Vec right[vectors];
        for (int v = 0; v < vectors; v++) right[v] = load(b + k * b_stride + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float left = a[k * a_stride + r];
            for (int v = 0; v < vectors; v++) sums[r][v] += right[v] * left;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(c + r * c_stride + v * LANES, sums[r][v]);
}

template <int panels>
static void accumulate_rows(int rows, int depth, const float* a, int a_stride, const float* b, int b_stride, float* c,
                            int c_stride) {
    constexpr int most = LANES == 16 ? 12 : 6;
    int row = 0;
    for (; row + most <= rows; row += most)
        accumulate_block<most, panels>(depth, a + row, a_stride, b, b_stride, c + row * c_stride, c_stride);
    for (; row + 4 <= rows; row += 4)
        accumulate_block<4, panels>(depth, a + row, a_stride, b, b_stride, c + row * c_stride, c_stride);
    for (; row + 2 <= rows; row += 2)
        accumulate_block<2, panels>(depth, a + row, a_stride, b, b_stride, c + row * c_stride, c_stride);
}

// Adds the gradient of the transformed weights, (36, C, C'); C is input.channels, C' gradient.channels.
static void weight_gradient(const Maps& input, const Maps& gradient, float* sums) {
    const TileGrid grid(input);
    const int in = input.channels, out = gradient.channels;
    const size_t left = static_cast<size_t>(GRADIENT_TILES) * in + 16, right = static_cast<size_t>(GRADIENT_TILES) * out + 16;
    Floats memory(POSITIONS * (left + right)), zeros(larger(in, out));
    fill_zero(zeros.data, larger(in, out));
    float* a = memory.data;
    float* b = a + POSITIONS * left;
    for (int first = 0; first < grid.count; first += GRADIENT_TILES) {
        const int count = smaller(GRADIENT_TILES, grid.count - first);
        for (int i = 0; i < count; i++) {
            int image, y, x;
            const float* pixels[36];
            grid.place(first + i, &image, &y, &x);
            window<6>(input, image, y - 1, x - 1, zeros.data, pixels);
            transform_pixels(pixels, in, left, a + static_cast<size_t>(i) * in);
            window<4>(gradient, image, y, x, zeros.data, pixels);
            transform_gradients(pixels, out, right, b + static_cast<size_t>(i) * out);
        }
        for (int position = 0; position < POSITIONS; position++) {
            float* c = sums + static_cast<size_t>(position) * in * out;
            const float* from = a + position * left;
            const float* with = b + position * right;
            int column = 0;
            for (; column + PANELS * PANEL <= out; column += PANELS * PANEL)
                accumulate_rows<PANELS>(in, count, from, in, with + column, out, c + column, out);
            for (; column < out; column += PANEL)
                accumulate_rows<1>(in, count, from, in, with + column, out, c + column, out);
        }
    }
}
