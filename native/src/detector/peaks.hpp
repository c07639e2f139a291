// Non-maximum suppression: which pixels are the largest around them.

// One bit a lane that is equal.
static INLINE unsigned equal_lanes(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_cmpeq_ps_mask((__m512)a, (__m512)b);
#else
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ)));
#endif
}

// The maximum of every ``size`` neighbours of ``count + size - 1`` values. Steps that double what a value stands for
// are slower for the usual sizes: each would wait for the stores of the one before.
static void window_maximum(const float* values, int count, int size, float* out) {
    for (int x = 0; x < count; x += LANES) {
        Vec most = load(values + x);
        for (int other = 1; other < size; other++) most = maximum(most, load(values + x + other));
        store(out + x, most);
    }
}

// Copies the scores that are at least ``bound`` and not covered, zero for the others; tells whether one is NaN.
static bool keep_candidates(const float* scores, const uint8_t* covered, int count, float bound, float* out) {
    typedef uint8_t Bytes __attribute__((vector_size(LANES)));
    VecInt broken{};
    int x = 0;
    for (; x + LANES <= count; x += LANES) {
        const Vec value = load(scores + x);
        Bytes cover;
        memcpy(&cover, covered + x, sizeof cover);
        const VecInt keep = (value >= bound) & (__builtin_convertvector(cover, VecInt) == 0);
        broken |= value != value;
        store(out + x, (Vec)((VecInt)value & keep));
    }
    bool found = false;
    for (int lane = 0; lane < LANES; lane++) found = found || broken[lane];
    for (; x < count; x++) {
        found = found || scores[x] != scores[x];
        out[x] = scores[x] >= bound && !covered[x] ? scores[x] : 0.0f;
    }
    return found;
}

static int64_t peaks(const float* scores, int height, int width, int radius, float bound, const uint8_t* covered,
                     int64_t* pixels) {
    // More rows or columns than there are change nothing.
    radius = smaller(radius, larger(height, width));
    const int size = 2 * radius + 1, kept = smaller(size, height + radius);
    const size_t stride = static_cast<size_t>((width + LANES - 1) / LANES * LANES);
    const size_t line_size = stride + 2 * static_cast<size_t>(radius) + 2 * LANES;
    // Of the last rows: the maxima along each, and the scores that take part. ``line`` is one with zeros around it.
    Floats maxima(stride * kept), own(stride * (radius + 1)), line(line_size);
    fill_zero(line.data, line_size);
    fill_zero(own.data, stride * (radius + 1));
    fill_zero(maxima.data, stride * kept);
    int64_t found = 0;
    bool broken = false;
    for (int y = 0; y < height + radius; y++) {
        float* row = maxima.data + static_cast<size_t>(y % kept) * stride;
        if (y < height) {
            const float* from = scores + static_cast<size_t>(y) * width;
            const uint8_t* cover = covered + static_cast<size_t>(y) * width;
            float* to = own.data + static_cast<size_t>(y % (radius + 1)) * stride;
            broken = keep_candidates(from, cover, width, bound, to) || broken;
            memcpy(line.data + radius, to, width * sizeof(float));
            window_maximum(line.data, width, size, row);
        } else {
            fill_zero(row, stride);
        }
        const int middle = y - radius;
        if (middle < 0) continue;
        const float* values = own.data + static_cast<size_t>(middle % (radius + 1)) * stride;
        for (int x = 0; x < width; x += LANES) {
            Vec most = broadcast(bound);
            for (int other = 0; other < kept; other++) most = maximum(most, load(maxima.data + other * stride + x));
            for (unsigned bits = equal_lanes(load(values + x), most); bits; bits &= bits - 1) {
                pixels[found++] = static_cast<int64_t>(middle) * width + x + __builtin_ctz(bits);
            }
        }
    }
    return broken ? -1 : found;
}
