// What the detector's kernels share: padding of channels, memory, products with packed weights.

// Columns of a packed matrix that lie together; channels of maps are padded to a multiple. The same for all instruction
// sets, as are packed weights.
constexpr int PANEL = 16;
constexpr int VECTORS = PANEL / LANES;  // of a panel
// A layer's output is computed in tiles of 4 rows and so many columns, and so many tiles at a time: what belongs to
// them stays in the caches.
#if defined(VARIANT_amx) || defined(VARIANT_amx_emulated)
constexpr int TILE_WIDTH = 32, TILES = 3;
#else
constexpr int TILE_WIDTH = 4, TILES = 28;
#endif
// The micro-kernel's rows and panels: its sums fill the registers.
constexpr int ROWS = LANES == 16 ? 14 : 6;
constexpr int PANELS = LANES == 16 ? 2 : 1;

static INLINE int padded(int channels) { return (channels + PANEL - 1) / PANEL * PANEL; }

// Floats on cache lines; not initialised.
struct Floats {
    float* data = nullptr;
    Floats() = default;
    explicit Floats(size_t count) { reserve(count); }
    Floats(const Floats&) = delete;
    Floats& operator=(const Floats&) = delete;
    ~Floats() { release(data); }
    void reserve(size_t count) {
        release(data);
        data = static_cast<float*>(allocate(count * sizeof(float)));
    }
};

static INLINE void fill_zero(float* data, size_t count) { memset(data, 0, count * sizeof(float)); }

template <int rows, int panels>
static INLINE void multiply_block(int depth, const float* __restrict a, ptrdiff_t a_stride,
                                  const float* __restrict b, const float* bias, float* __restrict c,
                                  ptrdiff_t c_stride) {
    constexpr int vectors = panels * VECTORS;
    Vec sums[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = bias ? load(bias + v * LANES) : Vec{};
    const ptrdiff_t panel = static_cast<ptrdiff_t>(depth) * PANEL;
    for (int k = 0; k < depth; k++) {
        Vec weights[vectors];
        for (int v = 0; v < vectors; v++)
            weights[v] = load(b + v / VECTORS * panel + k * PANEL + v % VECTORS * LANES);
        // What comes after these panels; the processor's own looking ahead ends at each page.
        for (int p = 0; p < panels; p++) __builtin_prefetch(b + (panels + p) * panel + k * PANEL, 0, 3);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float value = a[r * a_stride + k];
            for (int v = 0; v < vectors; v++) sums[r][v] += weights[v] * value;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(c + r * c_stride + v * LANES, sums[r][v]);
}

template <int panels>
static void multiply_rows(int rows, int depth, const float* a, ptrdiff_t a_stride, const float* b,
                          const float* bias, float* c, ptrdiff_t c_stride) {
    switch (rows) {
#define CASE(n)                                                                                               \
    case n:                                                                                                   \
        if (n <= ROWS) multiply_block<(n <= ROWS ? n : 1), panels>(depth, a, a_stride, b, bias, c, c_stride); \
        break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
        CASE(13) CASE(14)
#undef CASE
    }
}

// c (rows, columns) = a (rows, depth) b + bias; b is packed (columns / PANEL, depth, PANEL), PANEL divides columns.
static void multiply(int rows, int columns, int depth, const float* a, ptrdiff_t a_stride, const float* b,
                     const float* bias, float* c, ptrdiff_t c_stride) {
    const int blocks = (rows + ROWS - 1) / ROWS;
    int column = 0;
    while (column < columns) {
        const bool full = column + PANELS * PANEL <= columns;
        const float* weights = b + static_cast<ptrdiff_t>(column) * depth;
        for (int block = 0; block < blocks; block++) {
            const int first = rows * block / blocks, count = rows * (block + 1) / blocks - first;
            const float* from = a + first * a_stride;
            float* to = c + first * c_stride + column;
            const float* add = bias ? bias + column : nullptr;
            if (full) multiply_rows<PANELS>(count, depth, from, a_stride, weights, add, to, c_stride);
            else multiply_rows<1>(count, depth, from, a_stride, weights, add, to, c_stride);
        }
        column += full ? PANELS * PANEL : PANEL;
    }
}
