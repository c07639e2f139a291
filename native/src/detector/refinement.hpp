// Peaks of the determinant of the image's Hessian near keypoints, computed there only.

// Rows of pixels, each ``stride`` floats long, of which what lies beyond the image repeats its edge.
static void copy_patch(const GrayImage& image, int top, int left, int side, int stride, float* out) {
    for (int y = 0; y < side; y++) {
        const int row = smaller(larger(top + y, 0), image.height - 1);
        const float* from = image.data + row * image.stride;
        float* to = out + static_cast<ptrdiff_t>(y) * stride;
        if (left >= 0 && left + side <= image.width) memcpy(to, from + left, side * sizeof(float));
        else for (int x = 0; x < side; x++) to[x] = from[smaller(larger(left + x, 0), image.width - 1)];
    }
}

// The determinant, not below zero, for ``side`` x ``side`` pixels, whose patch begins ``taps`` / 2 pixels before them.
// ``weights`` are the Gaussian and its first two derivatives; ``between`` has room for three patches.
static void determinants(const float* patch, int side, int stride, const float* weights, int taps, float scale,
                         float* between, float* out) {
    const int rows = side + taps - 1;
    const ptrdiff_t plane = static_cast<ptrdiff_t>(rows) * stride;
    for (int y = 0; y < rows; y++) {
        for (int x = 0; x < side; x += LANES) {
            Vec sums[3] = {};
            const float* from = patch + static_cast<ptrdiff_t>(y) * stride + x;
            for (int k = 0; k < taps; k++) {
                const Vec values = load(from + k);
                for (int i = 0; i < 3; i++) sums[i] += values * weights[i * taps + k];
            }
            for (int i = 0; i < 3; i++) store(between + i * plane + static_cast<ptrdiff_t>(y) * stride + x, sums[i]);
        }
    }
    for (int y = 0; y < side; y++) {
        for (int x = 0; x < side; x += LANES) {
            Vec yy{}, xy{}, xx{};
            const float* from = between + static_cast<ptrdiff_t>(y) * stride + x;
            for (int k = 0; k < taps; k++) {
                yy += load(from + k * stride) * weights[2 * taps + k];
                xy += load(from + plane + k * stride) * weights[taps + k];
                xx += load(from + 2 * plane + k * stride) * weights[k];
            }
            store(out + static_cast<ptrdiff_t>(y) * stride + x, maximum(scale * (xx * yy - xy * xy), Vec{}));
        }
    }
}

static INLINE float vertex(float before, float at, float after) {
    const float curvature = 2.0f * at - before - after;
    const float shift = 0.5f * (after - before) / (curvature > 1e-37f ? curvature : 1e-37f);
    return shift < -0.5f ? -0.5f : shift > 0.5f ? 0.5f : shift;
}

static void peaks_near(const GrayImage& image, const float* keypoints, int count, int radius, const float* weights,
                       int taps, float scale, int threads, float* places, int64_t* pixels) {
    const int side = 2 * radius + 3, patch_side = side + taps - 1;
    const int stride = patch_side + LANES;  // vectors reach over the end
    const size_t plane = static_cast<size_t>(patch_side) * stride + LANES, size = 5 * plane;
    Floats memory(size * threads);
    fill_zero(memory.data, size * threads);
    constexpr int some = 16;
    for_each(ceil_div(count, some), threads, [&](int block, int thread) {
        float* patch = memory.data + thread * size;
        float* scores = patch + plane;
        float* between = scores + plane;
        for (int n = block * some; n < smaller(count, (block + 1) * some); n++) {
            const int left = static_cast<int>(keypoints[2 * n]) - radius - 1;
            const int top = static_cast<int>(keypoints[2 * n + 1]) - radius - 1;
            copy_patch(image, top - taps / 2, left - taps / 2, patch_side, stride, patch);
            determinants(patch, side, stride, weights, taps, scale, between, scores);
            float best = 0.0f;
            pixels[n] = -1;
            for (int y = 1; y < side - 1; y++) {
                for (int x = 1; x < side - 1; x++) {
                    const int row = top + y, column = left + x;
                    if (row < 1 || row >= image.height - 1 || column < 1 || column >= image.width - 1) continue;
                    const float* at = scores + y * stride + x;
                    if (!(*at > best)) continue;
                    bool most = true;
                    for (int r = -1; r <= 1; r++)
                        for (int c = -1; c <= 1; c++) most = most && *at >= at[r * stride + c];
                    if (!most) continue;
                    best = *at;
                    pixels[n] = static_cast<int64_t>(row) * image.width + column;
                    places[2 * n] = column + vertex(at[-1], *at, at[1]);
                    places[2 * n + 1] = row + vertex(at[-stride], *at, at[stride]);
                }
            }
        }
    });
}
