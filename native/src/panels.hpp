// How matrices lie in memory. Included by variant.cpp within the variant's namespace.
//
// A matrix of R rows lies in panels of PANEL columns, one behind the other, zeros in the columns that the last one
// lacks: entry (r, c) is at (c / PANEL) stride + r PANEL + c % PANEL, where stride is at least R PANEL. A left factor's
// rows are then near each other, and of a right factor each panel is one stream.

constexpr int PANEL = 2 * LANES;

static INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }
static INLINE int round_up(int a, int b) { return ceil_div(a, b) * b; }
static INLINE int smaller(int a, int b) { return a < b ? a : b; }
static INLINE int larger(int a, int b) { return a > b ? a : b; }

// Exchange rows and columns of a square of PANEL rows of PANEL floats.
static void transpose_square(const float* from, float* to) {
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
            Vec rows[LANES];
            for (int row = 0; row < LANES; ++row) rows[row] = load(from + (i * LANES + row) * PANEL + j * LANES);
            transpose(rows);
            for (int row = 0; row < LANES; ++row) store(to + (j * LANES + row) * PANEL + i * LANES, rows[row]);
        }
    }
}
