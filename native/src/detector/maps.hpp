// Maps of channels between the layers, and the tiles that a layer's output is computed in.
static INLINE int in_width(const Layer& layer) { return padded(layer.in_channels); }
static INLINE int out_width(const Layer& layer) { return padded(layer.out_channels); }
static INLINE int ceil_tiles(int width) { return (width + TILE_WIDTH - 1) / TILE_WIDTH; }

// Rows of a map, of which the last ``capacity`` are kept. A row begins and ends with zeros beyond the image.
struct Rows {
    int width = 0, channels = 0, capacity = 0;  // channels padded
    float* data = nullptr;

    size_t stride() const { return static_cast<size_t>((width + 3) / 4 * 4 + 2) * channels; }
    // The first pixel of a row.
    float* at(int y) const { return data + y % capacity * stride() + channels; }
};

// The pixels that a tile of 4 x TILE_WIDTH outputs is computed from: one more on each side.
struct Surroundings {
    const float* rows[6];  // their first pixels
    int columns;           // how many there are; TILE_WIDTH + 2, or those beyond are zeros
};

static INLINE Surroundings surroundings(const Rows& map, int height, const float* zeros, int tile_y, int tile_x) {
    const ptrdiff_t offset = (static_cast<ptrdiff_t>(tile_x) * TILE_WIDTH - 1) * map.channels;
    Surroundings found;
    for (int r = 0; r < 6; r++) {
        const int y = 4 * tile_y - 1 + r;
        found.rows[r] = (y >= 0 && y < height ? map.at(y) : zeros + map.channels) + offset;
    }
    found.columns = smaller(TILE_WIDTH + 2, (map.width + 3) / 4 * 4 + 2 - tile_x * TILE_WIDTH);
    return found;
}
