// Products of bfloat16 matrices in AMX tiles, added up in float32: what gemm.hpp is for float32, under the same names.
// Included by variant.cpp within the variant's namespace, instead of gemm.hpp.
//
// Left factors lie in panels as everywhere; rows of 32 entries are just what a tile takes. A panel of a right factor
// has pairs of rows, (k, k + 1), entry by entry: entry (k, n) is at (k / 2) 2 PANEL + 2 n + k % 2.

typedef uint16_t Operand;

// Two tiles in each direction: four of results, which eight loads and sixteen products keep busy.
constexpr int TILE = 32;
constexpr int DEPTH = 32;
constexpr bool RIGHT_IS_LEFT = false;
static_assert(PANEL == 32, "a panel is as wide as a tile's row of bfloat16");

typedef uint32_t Words __attribute__((vector_size(64)));

static INLINE Words load_words(const void* from) {
    Words words;
    memcpy(&words, from, sizeof words);
    return words;
}

// bfloat16 of each lane, to nearest, halves to even, in the upper half of the word. NaN stays NaN.
static INLINE Words upper_halves(Vec v) {
    const Words bits = (Words)v;
    const Words nearest = bits + 0x7fff + ((bits >> 16) & 1);
    return ((Words)(v == v) & nearest & 0xffff0000u) | ((Words)(v != v) & 0x7fc00000u);
}

static INLINE Words lower_halves(Vec v) { return upper_halves(v) >> 16; }

static INLINE void store_operands(Operand* to, Vec v0, Vec v1) {
#if defined(VARIANT_amx)
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)v1, (__m512)v0);
    memcpy(to, &both, sizeof both);
#else
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)lower_halves(v0)));
    _mm256_storeu_si256((__m256i*)(to + LANES), _mm512_cvtepi32_epi16((__m512i)lower_halves(v1)));
#endif
}

static INLINE void store_right_rows(Operand* panel, int k, const float* row0, const float* row1) {
    uint32_t words[PANEL];
    for (int half = 0; half < PANEL; half += LANES) {
        const Words both = lower_halves(load(row0 + half)) | upper_halves(load(row1 + half));
        memcpy(words + half, &both, sizeof both);
    }
    memcpy(panel + (ptrdiff_t)k * PANEL, words, sizeof words);
}

// Row k; each odd row follows on the even one before it.
static INLINE void store_right_row(Operand* panel, int k, Vec v0, Vec v1) {
    Operand* to = panel + (ptrdiff_t)(k / 2) * 2 * PANEL;
    Words low = lower_halves(v0), high = lower_halves(v1);
    if (k % 2) {
        low = load_words(to) | upper_halves(v0);
        high = load_words(to + PANEL) | upper_halves(v1);
    }
    memcpy(to, &low, sizeof low);
    memcpy(to + PANEL, &high, sizeof high);
}

// Zeros in the rows from `rows` on that a product reads.
static INLINE void end_right_rows(Operand* panel, int rows) {
    const int stored = round_up(rows, 2), read = round_up(rows, DEPTH);
    memset(panel + (ptrdiff_t)stored * PANEL, 0, sizeof(Operand) * PANEL * (read - stored));
}

// Exchange rows and columns of 16 rows of 16 words.
static INLINE void transpose_words(const uint32_t* from, ptrdiff_t stride, uint32_t* to, ptrdiff_t to_stride) {
    Vec rows[LANES];
    for (int row = 0; row < LANES; ++row) memcpy(&rows[row], from + row * stride, sizeof(Vec));
    transpose(rows);
    for (int row = 0; row < LANES; ++row) memcpy(to + row * to_stride, &rows[row], sizeof(Vec));
}

static void pack_right_transposed(const Operand* rows, int count, Operand* to) {
    alignas(64) Operand square[PANEL * PANEL] = {};
    memcpy(square, rows, sizeof(Operand) * PANEL * smaller(count, PANEL));
    for (int half = 0; half < 2; ++half) {
        transpose_words((const uint32_t*)square + half * LANES * LANES, LANES, (uint32_t*)to + half * LANES, PANEL);
    }
}

// From a panel of `count` rows: the same as panel of a right factor, and its transpose as left factor, in squares.
static void pack_values(const Operand* rows, int count, Operand* right, Operand* left) {
    for (int first = 0; first < count; first += PANEL) {
        alignas(64) Operand square[PANEL * PANEL] = {};
        memcpy(square, rows + first * PANEL, sizeof(Operand) * PANEL * smaller(count - first, PANEL));
        auto* words = (uint32_t*)(right + first * PANEL);
        for (int k = 0; k < PANEL; k += 2) {
            for (int half = 0; half < PANEL; half += LANES) {
                const Operand *even = square + k * PANEL + half, *odd = even + PANEL;
                const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)even));
                const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)odd));
                _mm512_storeu_si512(words + k / 2 * PANEL + half, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
        auto* turned = (uint32_t*)(left + first * PANEL);
        for (int half = 0; half < 2; ++half) {
            transpose_words(words + half * LANES, PANEL, turned + half * LANES * LANES, LANES);
        }
    }
}

struct Left {
    const Operand* data;
    ptrdiff_t stride;
};

struct LeftTransposed {
    const Operand* data;  // as `pack_values` lays it out
};

#if defined(VARIANT_amx)

// The compiler's own functions for tiles do not tell it what memory they read, so these are written out.
template <int tile>
static INLINE void load_tile(const Operand* from, ptrdiff_t row_bytes) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(tile) : "memory");
}

template <int tile>
static INLINE void store_tile(float* to, ptrdiff_t row_bytes) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(tile) : "memory");
}

template <int result, int left, int right>
static INLINE void multiply_tiles() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(result), "i"(left), "i"(right));
}

// Tiles 0 to 3 hold results, 4 and 5 rows of the left factor, 6 and 7 columns of the right one; all are full.
static INLINE void begin_tiles() {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    static_assert(sizeof configuration == 64, "as the processor reads it");
    __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
}

static INLINE void end_tiles() { __asm__ volatile("tilerelease"); }

struct Results {
    void clear() {
        __asm__ volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
    }
    void add(const Operand* left, const Operand* right) {
        constexpr ptrdiff_t left_bytes = sizeof(Operand) * PANEL, right_bytes = 2 * left_bytes;
        load_tile<4>(left, left_bytes);
        load_tile<6>(right, right_bytes);
        multiply_tiles<0, 4, 6>();
        load_tile<7>(right + PANEL, right_bytes);
        multiply_tiles<1, 4, 7>();
        load_tile<5>(left + LANES * PANEL, left_bytes);
        multiply_tiles<2, 5, 6>();
        multiply_tiles<3, 5, 7>();
    }
    void store_to(float* to) {
        constexpr ptrdiff_t bytes = sizeof(float) * PANEL;
        store_tile<0>(to, bytes);
        store_tile<1>(to + LANES, bytes);
        store_tile<2>(to + LANES * PANEL, bytes);
        store_tile<3>(to + LANES * PANEL + LANES, bytes);
    }
};

#else

static INLINE void begin_tiles() {}
static INLINE void end_tiles() {}

// The same arithmetic without tiles: even and odd terms are added up by themselves, each product rounded with its sum,
// then both together, then these to the result. (Tiles take denormal numbers for zero, which is not done here.)
struct Results {
    float results[TILE][PANEL];

    void clear() { memset(results, 0, sizeof results); }
    void add(const Operand* left, const Operand* right) {
        for (int row = 0; row < TILE; ++row) {
            for (int half = 0; half < PANEL; half += LANES) {
                Vec even{}, odd{};
                for (int pair = 0; pair < DEPTH / 2; ++pair) {
                    const Words words = load_words(right + pair * 2 * PANEL + 2 * half);
                    even = fma(number(left[row * PANEL + 2 * pair]), (Vec)(words << 16), even);
                    odd = fma(number(left[row * PANEL + 2 * pair + 1]), (Vec)(words & 0xffff0000u), odd);
                }
                store(results[row] + half, load(results[row] + half) + (even + odd));
            }
        }
    }
    void store_to(float* to) const { memcpy(to, results, sizeof results); }

  private:
    static Vec number(Operand bits) { return (Vec)(Words{} + ((uint32_t)bits << 16)); }
};

#endif

static INLINE void add_products(Results& results, Left a, int first_row, const Operand* right, int depth) {
    const Operand* left = a.data + (ptrdiff_t)first_row * PANEL;
    for (; depth > 0; depth -= DEPTH, left += a.stride, right += DEPTH * PANEL) results.add(left, right);
}

template <class Epilogue>
static INLINE void hand_out(Results& results, int first, int rows, const Epilogue& epilogue) {
    alignas(64) float buffer[TILE * PANEL];
    results.store_to(buffer);
    for (int row = 0; row < smaller(TILE, rows - first); ++row) {
        epilogue(first + row, load(buffer + row * PANEL), load(buffer + row * PANEL + LANES));
    }
}

template <class Epilogue>
static INLINE void product(int rows, Left a, const Operand* right, int depth, const Epilogue& epilogue) {
    for (int first = 0; first < rows; first += TILE) {
        Results results;
        results.clear();
        add_products(results, a, first, right, depth);
        hand_out(results, first, rows, epilogue);
    }
}

template <class Epilogue>
static INLINE void product(
    int rows, Left a, int depth_a, Left b, int depth_b, const Operand* right, const Epilogue& epilogue) {
    for (int first = 0; first < rows; first += TILE) {
        Results results;
        results.clear();
        add_products(results, a, first, right, depth_a);
        add_products(results, b, first, right + (ptrdiff_t)depth_a * PANEL, depth_b);
        hand_out(results, first, rows, epilogue);
    }
}

template <class Epilogue>
static INLINE void product(LeftTransposed a, const Operand* right, int depth, const Epilogue& epilogue) {
    product(PANEL, Left{a.data, PANEL * PANEL}, right, depth, epilogue);
}

// Whether tiles, and what packs their factors, give the right answers: whole numbers, of which all sums are exact.
static bool works() {
    constexpr int depth = 2 * DEPTH;
    static float a[TILE][depth], b[PANEL][depth];
    static Operand left[TILE * depth], rows[PANEL * depth], right[PANEL * depth], values[2 * PANEL * depth];
    for (int i = 0; i < TILE; ++i) {
        for (int k = 0; k < depth; ++k) a[i][k] = (i * 7 + k * 3) % 17 - 8, b[i][k] = (i * 5 + k * 11) % 13 - 6;
    }
    for (int part = 0; part < 2; ++part) {
        for (int i = 0; i < TILE; ++i) {
            const float *of_a = a[i] + part * PANEL, *of_b = b[i] + part * PANEL;
            store_operands(left + (part * TILE + i) * PANEL, load(of_a), load(of_a + LANES));
            store_operands(rows + (part * PANEL + i) * PANEL, load(of_b), load(of_b + LANES));
        }
        pack_right_transposed(rows + part * PANEL * PANEL, PANEL, right + part * PANEL * PANEL);
    }
    pack_values(rows, PANEL, values, values + PANEL * depth);
    bool right_numbers = true;
    begin_tiles();
    product(TILE, Left{left, TILE * PANEL}, right, depth, [&](int row, Vec v0, Vec v1) {
        for (int column = 0; column < PANEL; ++column) {
            float sum = 0;
            for (int k = 0; k < depth; ++k) sum += a[row][k] * b[column][k];
            right_numbers = right_numbers && sum == (column < LANES ? v0[column] : v1[column - LANES]);
        }
    });
    product(LeftTransposed{values + PANEL * depth}, values, PANEL, [&](int row, Vec v0, Vec v1) {
        for (int column = 0; column < PANEL; ++column) {
            float sum = 0;
            for (int k = 0; k < PANEL; ++k) sum += b[k][row] * b[k][column];
            right_numbers = right_numbers && sum == (column < LANES ? v0[column] : v1[column - LANES]);
        }
    });
    end_tiles();
    return right_numbers;
}
