// Products of float32 matrices that lie in panels, the largest tile of the result that fits the registers at a time.
// Included by variant.cpp within the variant's namespace.

// Rows of a tile: with two vectors of a right factor's row and one entry of the left's, all registers are in use.
constexpr int TILE = LANES == 16 ? 14 : 6;

// What products take.
typedef float Operand;

static INLINE void store_operands(Operand* to, Vec v0, Vec v1) {
    store(to, v0);
    store(to + LANES, v1);
}

// Rows k and k + 1 of a panel of a right factor.
static INLINE void store_right_rows(Operand* panel, int k, const float* row0, const float* row1) {
    memcpy(panel + (ptrdiff_t)k * PANEL, row0, PANEL * sizeof(float));
    memcpy(panel + (ptrdiff_t)(k + 1) * PANEL, row1, PANEL * sizeof(float));
}

// Depths of products are multiples of this, with zeros where needed.
constexpr int DEPTH = 1;

// A panel of a left factor can serve as panel of a right factor, and its transpose as left factor, so that there is
// nothing to do for the functions below that prepare them.
constexpr bool RIGHT_IS_LEFT = true;
static INLINE void store_right_row(Operand*, int, Vec, Vec) {}
static INLINE void end_right_rows(Operand*, int) {}
static INLINE void pack_values(const Operand*, int, Operand*, Operand*) {}

// PANEL rows of a panel of a right factor, from the transpose of `count` rows of a left factor's panel and zeros.
static void pack_right_transposed(const Operand* rows, int count, Operand* to) {
    if (count >= PANEL) return transpose_square(rows, to);
    alignas(64) float square[PANEL * PANEL] = {};
    memcpy(square, rows, sizeof(float) * count * PANEL);
    transpose_square(square, to);
}

struct Left {
    const Operand* data;
    ptrdiff_t stride;  // from panel to panel
};

// The transpose of one panel of a left factor.
struct LeftTransposed {
    const Operand* data;
};

template <int rows>
struct Tile {
    Vec value[rows][2];
};

// Add to c the products of rows at `a`, whose entry (r, k) is at r across + k along, with `depth` rows at `b`.
// Where the rows lie one behind the other, those of the next tile are fetched into the nearest cache meanwhile.
template <int rows, int across, int along>
static INLINE void multiply_panel(Tile<rows>& c, const float* __restrict a, const float* __restrict b, int depth) {
    for (int k = 0; k < depth; ++k) {
        if constexpr (along == 1) __builtin_prefetch(a + rows * across + k * LANES);
        const Vec b0 = load(b + k * PANEL), b1 = load(b + k * PANEL + LANES);
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            const Vec entry = broadcast(a[row * across + k * along]);
            c.value[row][0] = fma(entry, b0, c.value[row][0]);
            c.value[row][1] = fma(entry, b1, c.value[row][1]);
        }
    }
}

template <int rows>
static INLINE void multiply(Tile<rows>& c, Left a, int first_row, const Operand* right, int depth) {
    const Operand* data = a.data + (ptrdiff_t)first_row * PANEL;
    for (; depth > PANEL; depth -= PANEL, data += a.stride, right += PANEL * PANEL) {
        multiply_panel<rows, PANEL, 1>(c, data, right, PANEL);
    }
    multiply_panel<rows, PANEL, 1>(c, data, right, depth);
}

template <int rows>
static INLINE void multiply(Tile<rows>& c, LeftTransposed a, int first_row, const Operand* right, int depth) {
    multiply_panel<rows, 1, PANEL>(c, a.data + first_row, right, depth);
}

template <int rows>
struct Size {
    static constexpr int value = rows;
};

// Call function(Size<rows>, first) for tiles that cover `rows` rows.
template <class Function>
static INLINE void for_tiles(int rows, const Function& function) {
    int first = 0;
    for (; rows - first >= TILE; first += TILE) function(Size<TILE>{}, first);
    if constexpr (TILE > 8) {
        if (rows - first >= 8) function(Size<8>{}, first), first += 8;
    }
    if (rows - first >= 4) function(Size<4>{}, first), first += 4;
    if (rows - first >= 2) function(Size<2>{}, first), first += 2;
    if (rows - first >= 1) function(Size<1>{}, first);
}

template <int rows, class Epilogue>
static INLINE void hand_out(const Tile<rows>& c, int first, const Epilogue& epilogue) {
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) epilogue(first + row, c.value[row][0], c.value[row][1]);
}

// Rows 0 to `rows` of a times the panel of a right factor, each row given to epilogue(row, v0, v1).
template <class Epilogue>
static INLINE void product(int rows, Left a, const Operand* right, int depth, const Epilogue& epilogue) {
    for_tiles(rows, [&](auto size, int first) {
        Tile<decltype(size)::value> c{};
        multiply(c, a, first, right, depth);
        hand_out(c, first, epilogue);
    });
}

// The same for a left factor in two parts, [a | b].
template <class Epilogue>
static INLINE void product(
    int rows, Left a, int depth_a, Left b, int depth_b, const Operand* right, const Epilogue& epilogue) {
    for_tiles(rows, [&](auto size, int first) {
        Tile<decltype(size)::value> c{};
        multiply(c, a, first, right, depth_a);
        multiply(c, b, first, right + (ptrdiff_t)depth_a * PANEL, depth_b);
        hand_out(c, first, epilogue);
    });
}

// The transpose of one panel of a, whose rows are `depth`, times the panel of a right factor: PANEL rows.
template <class Epilogue>
static INLINE void product(LeftTransposed a, const Operand* right, int depth, const Epilogue& epilogue) {
    constexpr int some = PANEL == 32 ? 12 : 6, rest = (PANEL - some) / 2;
    static_assert(some + 2 * rest == PANEL, "three tiles make a panel");
    Tile<some> c{};
    multiply(c, a, 0, right, depth);
    hand_out(c, 0, epilogue);
    for (int first = some; first < PANEL; first += rest) {
        Tile<rest> d{};
        multiply(d, a, first, right, depth);
        hand_out(d, first, epilogue);
    }
}

// Float32 needs no tiles and no proof that they work.
static INLINE void begin_tiles() {}
static INLINE void end_tiles() {}
static bool works() { return true; }
