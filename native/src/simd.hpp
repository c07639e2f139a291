// Vectors of floats of the instruction set at hand. Included by variant.cpp within the variant's namespace.

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t VecInt __attribute__((vector_size(LANES * 4)));

#define INLINE inline __attribute__((always_inline))

static INLINE Vec broadcast(float value) { return value - Vec{}; }
static INLINE VecInt broadcast_int(int32_t value) { return value - VecInt{}; }

static INLINE Vec load(const float* from) {
    Vec value;
    memcpy(&value, from, sizeof value);
    return value;
}

static INLINE void store(float* to, Vec value) { memcpy(to, &value, sizeof value); }

// 0, 1, 2, ...
static INLINE VecInt lanes() {
#if defined(__AVX512F__)
    return VecInt{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
    return VecInt{0, 1, 2, 3, 4, 5, 6, 7};
#endif
}

// The first `count` of the floats at `from`, zeros behind them. Only these are read, and only these written.
static INLINE Vec load_first(const float* from, int count) {
#if defined(__AVX512F__)
    const __mmask16 some = count >= LANES ? 0xffff : (1u << (count < 0 ? 0 : count)) - 1;
    return (Vec)_mm512_maskz_loadu_ps(some, from);
#else
    return (Vec)_mm256_maskload_ps(from, (__m256i)(lanes() < broadcast_int(count)));
#endif
}

static INLINE void store_first(float* to, Vec value, int count) {
#if defined(__AVX512F__)
    const __mmask16 some = count >= LANES ? 0xffff : (1u << (count < 0 ? 0 : count)) - 1;
    _mm512_mask_storeu_ps(to, some, (__m512)value);
#else
    _mm256_maskstore_ps(to, (__m256i)(lanes() < broadcast_int(count)), (__m256)value);
#endif
}

// a b + c, rounded once.
static INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#endif
}

// The larger of each lane; where one is not a number, b.
static INLINE Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#endif
}

static INLINE Vec minimum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#endif
}

static INLINE Vec absolute(Vec a) { return (Vec)((VecInt)a & 0x7fffffff); }

// Nearest whole number, halves to even.
static INLINE Vec rounded(Vec a) {
#if defined(__AVX512F__)
    return (Vec)_mm512_roundscale_ps((__m512)a, 8);
#else
    return (Vec)_mm256_round_ps((__m256)a, 8);
#endif
}

// a 2^n for whole n; n below -126 or above 127 gives what rounding to float32 gives.
static INLINE Vec scale_by_power(Vec a, Vec n) {
#if defined(__AVX512F__)
    return (Vec)_mm512_scalef_ps((__m512)a, (__m512)n);
#else
    // Two factors, as 2^n itself may be out of range.
    const __m256i whole = _mm256_cvtps_epi32((__m256)minimum(maximum(n, broadcast(-252.0f)), broadcast(252.0f)));
    const __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
    const __m256i bias = _mm256_set1_epi32(127);
    const Vec first = (Vec)_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const Vec second = (Vec)_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return a * first * second;
#endif
}

// 2^x, with a relative error of 2e-7; inf above 128, 0 or denormal below -126, NaN stays NaN.
static INLINE Vec exp2(Vec x) {
    const Vec whole = rounded(x);
    const Vec f = x - whole;
    // Polynomial of 2^f on [-1/2, 1/2], the largest relative error as small as it can be.
    Vec y = broadcast(1.3264728e-3f);
    y = fma(y, f, broadcast(9.6715130e-3f));
    y = fma(y, f, broadcast(5.5507336e-2f));
    y = fma(y, f, broadcast(2.4022242e-1f));
    y = fma(y, f, broadcast(6.9314700e-1f));
    y = fma(y, f, broadcast(1.0f));
    return scale_by_power(y, whole);
}

// GELU, x (1 + erf(x / sqrt(2))) / 2, with an error of 2.4e-7 |x|; infinite x give what they should, NaN stays NaN.
static INLINE Vec gelu(Vec x) {
    // The normal distribution function beyond 5 is 0 or 1 in float32; between, it is 1/2 + c P(2 c c / 25 - 1).
    const Vec c = minimum(maximum(x, broadcast(-5.0f)), broadcast(5.0f));
    const Vec s = fma(c * c, broadcast(0.08f), broadcast(-1.0f));
    Vec y = broadcast(6.0870359e-4f);
    y = fma(y, s, broadcast(-1.6132570e-3f));
    y = fma(y, s, broadcast(1.7228660e-3f));
    y = fma(y, s, broadcast(-2.6855955e-3f));
    y = fma(y, s, broadcast(6.4104404e-3f));
    y = fma(y, s, broadcast(-1.1164321e-2f));
    y = fma(y, s, broadcast(1.6402207e-2f));
    y = fma(y, s, broadcast(-2.3268661e-2f));
    y = fma(y, s, broadcast(3.1442165e-2f));
    y = fma(y, s, broadcast(-4.0442605e-2f));
    y = fma(y, s, broadcast(5.1520523e-2f));
    y = fma(y, s, broadcast(-7.0296280e-2f));
    y = fma(y, s, broadcast(1.4136378e-1f));
    return x * fma(y, c, broadcast(0.5f));
}

// The lanes of a, each moved to the place of the one `distance` (a power of two) away.
template <int distance>
static INLINE Vec swapped(Vec a) {
    return __builtin_shuffle(a, lanes() ^ broadcast_int(distance));
}

// The sum of all lanes, in each lane.
static INLINE Vec sum_everywhere(Vec a) {
    if constexpr (LANES == 16) a += swapped<8>(a);
    a += swapped<4>(a);
    a += swapped<2>(a);
    return a + swapped<1>(a);
}

static INLINE Vec maximum_everywhere(Vec a) {
    if constexpr (LANES == 16) a = maximum(a, swapped<8>(a));
    a = maximum(a, swapped<4>(a));
    a = maximum(a, swapped<2>(a));
    return maximum(a, swapped<1>(a));
}

static INLINE float sum_of(Vec a) { return sum_everywhere(a)[0]; }
static INLINE float maximum_of(Vec a) { return maximum_everywhere(a)[0]; }

template <int distance>
static INLINE void exchange(Vec (&rows)[LANES]) {
    const VecInt own = lanes();
    // In the upper row of each pair: lanes without the bit from it, the others from the lower row; and the reverse.
    const VecInt bit = (own & broadcast_int(distance)) != 0;
    const VecInt upper = bit ? own + broadcast_int(LANES - distance) : own;
    const VecInt lower = bit ? own + broadcast_int(LANES) : own + broadcast_int(distance);
    for (int row = 0; row < LANES; ++row) {
        if (row & distance) continue;
        const Vec a = rows[row], b = rows[row + distance];
        rows[row] = __builtin_shuffle(a, b, upper);
        rows[row + distance] = __builtin_shuffle(a, b, lower);
    }
}

// Exchange rows and columns.
static INLINE void transpose(Vec (&rows)[LANES]) {
    if constexpr (LANES == 16) exchange<8>(rows);
    exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
}
