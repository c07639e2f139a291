// The two heads: what they share, scores of pixels, descriptors at keypoints.

// The cells of a tile that are wanted, and where their values go. ``places`` has each cell's place, or -1 if it is not
// wanted; null if all cells are, in any order.
struct HeadTiles {
    const CellMap* map;
    const Layer* layer;  // 3 x 3
    const int* tiles;    // which ones; null if all are wanted
    const int* places;
    const float* zeros;

    int across() const { return ceil_tiles(map->width); }

    // Computes some tiles' wanted cells, ReLU included: ``hidden`` (number, padded channels) and which cells they are.
    int compute(int first, int count, float* memory, float* hidden, int* cells) const {
        Rows rows;
        rows.width = map->width;
        rows.channels = in_width(*layer);
        rows.capacity = map->height;
        rows.data = const_cast<float*>(map->data);
        for (int i = 0; i < count; i++) {
            const int tile = tiles ? tiles[first + i] : first + i;
            const Surroundings from = surroundings(rows, map->height, zeros, tile / across(), tile % across());
            tile_in(*layer, i, from, memory);
        }
        multiply_tiles(*layer, count, memory);
        int found = 0;
        for (int i = 0; i < count; i++) {
            const int tile = tiles ? tiles[first + i] : first + i;
            float* targets[4 * TILE_WIDTH];
            for (int c = 0; c < 4 * TILE_WIDTH; c++) {
                const int y = tile / across() * 4 + c / TILE_WIDTH, x = tile % across() * TILE_WIDTH + c % TILE_WIDTH;
                const int cell = y * map->width + x;
                targets[c] = nullptr;
                if (y >= map->height || x >= map->width || (places && places[cell] < 0)) continue;
                cells[found] = cell;
                targets[c] = hidden + static_cast<size_t>(found++) * out_width(*layer);
            }
            tile_out<false>(*layer, i, memory, targets);
        }
        return found;
    }
};

// Computes tiles' cells through both layers of a head, in blocks: use(cells, number, values (number, padded channels)).
template <class Use>
static void run_head(const CellMap& map, const Head& head, const int* tiles, int tile_count, const int* places,
                     int threads, const Use& use) {
    const size_t row = static_cast<size_t>((map.width + 3) / 4 * 4 + 2) * in_width(head.hidden);
    Floats zeros(row);
    fill_zero(zeros.data, row);
    const HeadTiles work{&map, &head.hidden, tiles, places, zeros.data};
    constexpr int most = 4 * TILE_WIDTH * TILES;
    const int hidden_width = out_width(head.hidden), width = out_width(head.last);
    const size_t products = tile_memory(head.hidden), hidden = static_cast<size_t>(most) * hidden_width;
    const size_t scratch = products + hidden + static_cast<size_t>(most) * width;
    Floats memory(scratch * threads);
    const int blocks = (tile_count + TILES - 1) / TILES;
    for_each(blocks, threads, [&](int block, int worker) {
        float* own = memory.data + worker * scratch;
        const int first = static_cast<int>(static_cast<int64_t>(tile_count) * block / blocks);
        const int end = static_cast<int>(static_cast<int64_t>(tile_count) * (block + 1) / blocks);
        int cells[most];
        const int found = work.compute(first, end - first, own, own + products, cells);
        float* values = own + products + hidden;
        multiply(found, width, head.last.in_channels, own + products, hidden_width,
                 static_cast<const float*>(head.last.weight), head.last.bias, values, width);
        use(cells, found, values);
    });
}

// Turns one cell's logits into shares; those of padding are so small that nothing is left of them.
static INLINE void softmax(float* values, int width) {
    Vec most = load(values), total{};
    for (int c = LANES; c < width; c += LANES) most = maximum(most, load(values + c));
    const Vec shift = broadcast(maximum_of(most));
    constexpr float log2_e = 1.44269504088896341f;
    for (int c = 0; c < width; c += LANES) {
        const Vec share = exp2((load(values + c) - shift) * log2_e);
        store(values + c, share);
        total += share;
    }
    const float scale = 1.0f / sum_of(total);
    for (int c = 0; c < width; c += LANES) store(values + c, load(values + c) * scale);
}

static void scores(const CellMap& map, const Head& head, int cell, int threads, float* out) {
    const int width = out_width(head.last), tiles = (map.height + 3) / 4 * ceil_tiles(map.width);
    const size_t stride = static_cast<size_t>(map.width) * cell;
    run_head(map, head, nullptr, tiles, nullptr, threads, [&](const int* cells, int count, float* values) {
        for (int i = 0; i < count; i++) {
            float* from = values + static_cast<size_t>(i) * width;
            softmax(from, width);
            float* to = out + cells[i] / map.width * cell * stride + static_cast<size_t>(cells[i] % map.width) * cell;
            for (int y = 0; y < cell; y++) memcpy(to + y * stride, from + y * cell, cell * sizeof(float));
        }
    });
}

// Which four cells a keypoint's descriptor is made from, and how much each counts; see bilinear_corners in sampling.py.
struct Corners {
    int cells[4];
    float weights[4];
};

static Corners corners_of(const CellMap& map, int cell, const float* keypoint) {
    const int sizes[2] = {map.width, map.height};
    int low[2], high[2];
    float low_weight[2], high_weight[2];
    for (int axis = 0; axis < 2; axis++) {
        const int last = sizes[axis] - 1;
        const float extent = static_cast<float>(sizes[axis]) * cell - cell * 0.5f - 0.5f;
        const float place = (keypoint[axis] - cell * 0.5f + 0.5f) / extent * last;
        const float corner = __builtin_floorf(place);
        // Far outside the map, or not a number, nothing counts.
        const bool near = corner >= -2.0f && corner <= last + 1.0f;
        low[axis] = near ? static_cast<int>(corner) : -2;
        high[axis] = low[axis] + 1;
        low_weight[axis] = low[axis] < 0 || low[axis] > last ? 0.0f : 1.0f - (place - corner);
        high_weight[axis] = high[axis] < 0 || high[axis] > last ? 0.0f : place - corner;
        low[axis] = smaller(larger(low[axis], 0), last);
        high[axis] = smaller(larger(high[axis], 0), last);
    }
    Corners corners;
    for (int i = 0; i < 4; i++) {
        corners.cells[i] = (i < 2 ? low[1] : high[1]) * map.width + (i % 2 ? high[0] : low[0]);
        corners.weights[i] = (i < 2 ? low_weight[1] : high_weight[1]) * (i % 2 ? high_weight[0] : low_weight[0]);
    }
    return corners;
}

static INLINE float inverse_length(const float* values, int width) {
    Vec total{};
    for (int c = 0; c < width; c += LANES) total = fma(load(values + c), load(values + c), total);
    const float length = __builtin_sqrtf(sum_of(total));
    return 1.0f / (length > 1e-12f ? length : 1e-12f);
}

static void describe(const CellMap& map, const Head& head, int cell, const float* keypoints, int count, int threads,
                     float* descriptors) {
    const int size = map.height * map.width, across = ceil_tiles(map.width), length = head.last.out_channels;
    const int all_tiles = (map.height + 3) / 4 * across, width = out_width(head.last);
    // Which cells are wanted, in order of tiles.
    Floats place_memory(size), tile_memory(all_tiles);
    int* places = reinterpret_cast<int*>(place_memory.data);
    int* tiles = reinterpret_cast<int*>(tile_memory.data);
    for (int i = 0; i < size; i++) places[i] = -1;
    for (int i = 0; i < all_tiles; i++) tiles[i] = 0;
    for (int i = 0; i < count; i++) {
        const Corners corners = corners_of(map, cell, keypoints + 2 * i);
        for (int c : corners.cells) {
            places[c] = 0;
            tiles[c / map.width / 4 * across + c % map.width / TILE_WIDTH] = 1;
        }
    }
    int tile_count = 0, wanted = 0;
    for (int i = 0; i < all_tiles; i++) {
        if (tiles[i]) tiles[tile_count++] = i;
    }
    for (int i = 0; i < size; i++) {
        if (places[i] == 0) places[i] = wanted++;
    }
    Floats table(static_cast<size_t>(wanted) * width);
    run_head(map, head, tiles, tile_count, places, threads, [&](const int* cells, int found, float* values) {
        for (int i = 0; i < found; i++) {
            const float* from = values + static_cast<size_t>(i) * width;
            float* to = table.data + static_cast<size_t>(places[cells[i]]) * width;
            const float scale = inverse_length(from, width);
            for (int c = 0; c < width; c += LANES) store(to + c, load(from + c) * scale);
        }
    });
    Floats mixed(static_cast<size_t>(threads) * width);
    constexpr int group = 64;
    for_each((count + group - 1) / group, threads, [&](int block, int worker) {
        float* sum = mixed.data + static_cast<size_t>(worker) * width;
        for (int i = block * group; i < smaller(count, (block + 1) * group); i++) {
            const Corners corners = corners_of(map, cell, keypoints + 2 * i);
            const float* from[4];
            for (int k = 0; k < 4; k++) from[k] = table.data + static_cast<size_t>(places[corners.cells[k]]) * width;
            for (int c = 0; c < width; c += LANES) {
                Vec value = load(from[0] + c) * corners.weights[0];
                for (int k = 1; k < 4; k++) value += load(from[k] + c) * corners.weights[k];
                store(sum + c, value);
            }
            const float scale = inverse_length(sum, width);
            float* to = descriptors + static_cast<size_t>(i) * length;
            for (int c = 0; c < length; c += LANES) store_first(to + c, load(sum + c) * scale, length - c);
        }
    });
}
