// 3 x 3 convolutions by Winograd's minimal filtering F(4 x 4, 3 x 3): 36 products instead of 144 a 4 x 4 tile and
// channel.
//
// Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, arXiv 1509.09308. Interpolation points are
// 0, +-sqrt(1/2), +-sqrt(2) and infinity: with them errors in float32 are those of the direct sum (with 0, +-1, +-2
// they are two to four times as large). Weights come transformed and laid out; see winograd_weight in
// superpoint_native.py.
//
// Maps are channels last; the channels of a map are padded with zeros to a multiple of PANEL.

// A layer's memory holds a tile's 36 transformed values of each channel, position by position, then its 36 products.
constexpr int POSITIONS = 36;

// Distance of the 36 positions in the scratch: a line more than needed, or their stores fall into one set of the cache.
static INLINE size_t in_stride(const Layer& layer) { return static_cast<size_t>(TILES) * in_width(layer) + 16; }
static INLINE size_t out_stride(const Layer& layer) { return static_cast<size_t>(TILES) * out_width(layer) + 16; }
static INLINE size_t tile_memory(const Layer& layer) { return POSITIONS * (in_stride(layer) + out_stride(layer)); }

constexpr float ROOT_HALF = 0.70710678118654752f;
constexpr float ROOT_TWO = 1.41421356237309505f;

// One dimension of the input's transform: d[0], d[step], ... d[5 step] to six values, ``out_step`` apart.
static INLINE void transform_input(const Vec* d, int step, Vec* out, int out_step) {
    const Vec even1 = d[4 * step] - 2.0f * d[2 * step], odd1 = d[3 * step] - 2.0f * d[step];
    const Vec even2 = d[4 * step] - 0.5f * d[2 * step], odd2 = d[3 * step] - 0.5f * d[step];
    out[0] = d[0] - 2.5f * d[2 * step] + d[4 * step];
    out[out_step] = even1 + ROOT_HALF * odd1;
    out[2 * out_step] = even1 - ROOT_HALF * odd1;
    out[3 * out_step] = even2 + ROOT_TWO * odd2;
    out[4 * out_step] = even2 - ROOT_TWO * odd2;
    out[5 * out_step] = d[step] - 2.5f * d[3 * step] + d[5 * step];
}

// One dimension of the way back: six values to four.
static INLINE void transform_output(const Vec* m, int step, Vec* out, int out_step) {
    const Vec sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
    const Vec sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    out[0] = m[0] + sum1 + sum2;
    out[out_step] = ROOT_HALF * difference1 + ROOT_TWO * difference2;
    out[2 * out_step] = 0.5f * sum1 + 2.0f * sum2;
    out[3 * out_step] = (0.5f * ROOT_HALF) * difference1 + (2.0f * ROOT_TWO) * difference2 + m[5 * step];
}

// Transforms 6 x 6 pixels, of which at(y, x) gives the channels: 36 values of each channel, ``stride`` apart.
template <class At>
static INLINE void transform_window(const At& at, int channels, size_t stride, float* out) {
    for (int c = 0; c < channels; c += LANES) {
        Vec between[36];
        for (int x = 0; x < 6; x++) {
            Vec column[6];
            for (int y = 0; y < 6; y++) column[y] = load(at(y, x) + c);
            transform_input(column, 1, between + x, 6);
        }
        for (int y = 0; y < 6; y++) {
            Vec line[6];
            transform_input(between + 6 * y, 1, line, 1);
            for (int x = 0; x < 6; x++) store(out + (6 * y + x) * stride + c, line[x]);
        }
    }
}

// Transforms the surroundings of a tile, the block's ``index``-th.
static void tile_in(const Layer& layer, int index, const Surroundings& from, float* memory) {
    const int width = in_width(layer);
    transform_window([&](int y, int x) { return from.rows[y] + static_cast<ptrdiff_t>(x) * width; }, width,
                     in_stride(layer), memory + static_cast<size_t>(index) * width);
}

// Adds the bias to a tile's 4 x 4 values (2 x 2 maxima if ``pool``), cuts off what is negative (neither if ``linear``) and
// writes them where ``targets`` says, line by line; null leaves a value out.
template <bool pool, bool linear = false>
static void tile_out(const Layer& layer, int index, const float* memory, float* const* targets) {
    const int width = out_width(layer);
    const size_t stride = out_stride(layer);
    const float* in = memory + POSITIONS * in_stride(layer) + static_cast<size_t>(index) * width;
    for (int c = 0; c < width; c += LANES) {
        Vec between[24], values[16];
        for (int x = 0; x < 6; x++) {
            Vec column[6];
            for (int y = 0; y < 6; y++) column[y] = load(in + (6 * y + x) * stride + c);
            transform_output(column, 1, between + x, 6);
        }
        for (int y = 0; y < 4; y++) transform_output(between + 6 * y, 1, values + 4 * y, 1);
        const Vec add = linear ? Vec{} : load(layer.bias + c), zero = Vec{};
        if (linear) {
            for (int i = 0; i < 16; i++) {
                if (targets[i]) store(targets[i] + c, values[i]);
            }
        } else if (pool) {
            for (int i = 0; i < 4; i++) {
                const Vec* v = values + (i / 2) * 8 + (i % 2) * 2;
                const Vec most = maximum(maximum(v[0], v[1]), maximum(v[4], v[5]));
                if (targets[i]) store(targets[i] + c, maximum(most + add, zero));
            }
        } else {
            for (int i = 0; i < 16; i++) {
                if (targets[i]) store(targets[i] + c, maximum(values[i] + add, zero));
            }
        }
    }
}

// The products of ``count`` tiles over the channels, position by position.
static void multiply_tiles(const Layer& layer, int count, float* memory) {
    const float* in = memory;
    float* out = memory + POSITIONS * in_stride(layer);
    const size_t size = static_cast<size_t>(layer.in_channels) * out_width(layer);
    const float* weight = static_cast<const float*>(layer.weight);
    for (int position = 0; position < POSITIONS; position++) {
        multiply(count, out_width(layer), layer.in_channels, in + position * in_stride(layer), in_width(layer),
                 weight + position * size, nullptr, out + position * out_stride(layer), out_width(layer));
    }
}
