// Running a block on the tokens of several images. Included by variant.cpp within the variant's namespace.

enum Slot { HEADS, MESSAGE, KEYS, VALUES, PER_THREAD, COLUMNS, FLAGS, SLOTS };

// A count cut into pieces of about the same size, multiples of `unit`.
struct Pieces {
    int count, size;

    Pieces(int total, int most, int unit, int threads) {
        const int wanted = larger(round_up(ceil_div(total, larger(most, 1)), threads), 1);
        size = larger(round_up(ceil_div(total, wanted), unit), unit);
        count = ceil_div(total, size);
    }
};

class LayerRun {
  public:
    LayerRun(const Block& block, const BlockCall& call) : block_(block), call_(call) {
        for (int image = 0; image < call.images; ++image) tokens_ += call.lengths[image];
    }

    void run() {
        if (tokens_ == 0) return;
        // Rows that a tile reads past the last one, and another so that panels do not fall on the same place of caches.
        stride_ = (ptrdiff_t)(tokens_ + 1) * PANEL;
        const size_t slack = (size_t)TILE * PANEL;
        const int panels = block_.projection.outputs / PANEL, dim = block_.dim;
        heads_ = get<Operand>(HEADS, panels * stride_ + slack);
        message_ = get<Operand>(MESSAGE, block_.heads * dim / PANEL * stride_ + slack);
        const Pieces pieces(tokens_, MOST_ROWS, TILE, call_.threads);
        const size_t rows = round_up(pieces.size, TILE) + 1;
        const size_t left = rows * block_.padded_width() * sizeof(Operand);
        const size_t hidden = rows * block_.padded_hidden() * (sizeof(float) + (RIGHT_IS_LEFT ? 0 : sizeof(Operand)));
        const size_t attention = AttentionScratch::bytes(dim);
        per_thread_ = (left + hidden > attention ? left + hidden : attention) + slack * sizeof(float);
        per_thread_ = (per_thread_ + 63) / 64 * 64;
        scratch_ = get<char>(PER_THREAD, per_thread_ * call_.threads);

        for_each(pieces.count, call_.threads, [&](int index, int worker) {
            const int start = index * pieces.size, count = smaller(pieces.size, tokens_ - start);
            project(block_, call_, start, count, (Operand*)scratch(worker), heads_, stride_);
        });
        attend_all();
        for_each(pieces.count, call_.threads, [&](int index, int worker) {
            const int start = index * pieces.size, count = smaller(pieces.size, tokens_ - start);
            auto* buffer = (Operand*)scratch(worker);
            auto* middle = (float*)(scratch(worker) + left);
            auto* activated = RIGHT_IS_LEFT ? (Operand*)middle : (Operand*)(middle + rows * block_.padded_hidden());
            run_mlp(block_, call_, start, count, buffer, middle, activated, message_, stride_);
        });
    }

  private:
    template <class T>
    T* get(Slot slot, size_t count) {
        return static_cast<T*>(call_.work->get(slot, count * sizeof(T)));
    }

    char* scratch(int worker) { return scratch_ + per_thread_ * worker; }

    // Lay out keys and values of all images, then attend.
    void attend_all() {
        const int dim = block_.dim, heads = block_.key_value_heads;
        size_t padded = 0;
        for (int image = 0; image < call_.images; ++image) padded += round_up(call_.lengths[image], PANEL);
        keys_ = get<Operand>(KEYS, padded * dim * heads);
        if (!RIGHT_IS_LEFT) values_ = get<Operand>(VALUES, 2 * padded * dim * heads);
        for_each(call_.images * heads, call_.threads, [&](int index, int) {
            const AttentionHead head = head_of(index / heads, index % heads * (block_.heads / heads));
            const Operand* from = key_rows(index / heads, index % heads);
            for (int first = 0; first < head.count; first += PANEL) {
                for (int part = 0; part < dim / PANEL; ++part) {
                    pack_right_transposed(
                        from + part * stride_ + (ptrdiff_t)first * PANEL, smaller(PANEL, head.count - first),
                        const_cast<Operand*>(head.keys) + (ptrdiff_t)first * dim + part * PANEL * PANEL);
                }
            }
            if constexpr (!RIGHT_IS_LEFT) {
                for (int part = 0; part < dim / PANEL; ++part) {
                    pack_values(
                        value_rows(index / heads, index % heads) + part * stride_, head.count,
                        const_cast<Operand*>(head.values) + part * head.value_stride,
                        const_cast<Operand*>(head.values_left) + part * head.value_stride);
                }
            }
        });
        for (int image = 0; image < call_.images; image += 2) {
            if (call_.cross && block_.shared) {
                attend_pair(image);
            } else {
                attend_one_way(image);
                if (image + 1 < call_.images) attend_one_way(image + 1);
            }
        }
    }

    const Operand* panels_of(int image, int panel) const {
        int offset = 0;
        for (int before = 0; before < image; ++before) offset += call_.lengths[before];
        return heads_ + panel * stride_ + (ptrdiff_t)offset * PANEL;
    }

    const Operand* key_rows(int image, int head) const {
        return panels_of(image, ((block_.shared ? 0 : block_.heads) + head) * (block_.dim / PANEL));
    }

    const Operand* value_rows(int image, int head) const {
        const int before = block_.heads + (block_.shared ? 0 : block_.key_value_heads);
        return panels_of(image, (before + head) * (block_.dim / PANEL));
    }

    AttentionHead head_of(int image, int head) const {
        const int own = head / (block_.heads / block_.key_value_heads), dim = block_.dim;
        size_t padded = 0;
        for (int before = 0; before < image; ++before) padded += round_up(call_.lengths[before], PANEL);
        AttentionHead found = {};
        found.count = call_.lengths[image];
        const size_t size = round_up(found.count, PANEL);
        const size_t place = (padded * block_.key_value_heads + size * own) * dim;
        found.query = panels_of(image, head * (dim / PANEL)), found.query_stride = stride_;
        found.keys = keys_ + place;
        if (RIGHT_IS_LEFT) {
            found.values = found.values_left = value_rows(image, own), found.value_stride = stride_;
        } else {
            found.values = values_ + 2 * place, found.values_left = found.values + size * dim;
            found.value_stride = (ptrdiff_t)size * PANEL;
        }
        const ptrdiff_t offset = found.query - heads_ - head * (dim / PANEL) * stride_;
        found.message = message_ + head * (dim / PANEL) * stride_ + offset, found.message_stride = stride_;
        return found;
    }

    void attend_one_way(int image) {
        const int other = call_.cross ? image ^ 1 : image;
        const Pieces pieces(call_.lengths[image], BLOCK_ROWS, TILE, 1);
        for_each(block_.heads * pieces.count, call_.threads, [&](int index, int worker) {
            const int head = index / pieces.count, first = index % pieces.count * pieces.size;
            AttentionScratch buffers(scratch(worker), block_.dim);
            const AttentionHead own = head_of(image, head);
            attend(own, head_of(other, head), first, smaller(pieces.size, own.count - first), block_.dim, buffers);
        });
    }

    void attend_pair(int image) {
        const int dim = block_.dim, heads = block_.heads, count = call_.lengths[image];
        const int other_count = call_.lengths[image + 1];
        // Each range of rows needs sums of its own, so there are only as many as it takes to keep all threads busy.
        const Pieces ranges(count, count, TILE, ceil_div(call_.threads, heads));
        const size_t size = ColumnSums::floats(other_count, dim);
        float* sums = get<float>(COLUMNS, size * heads * ranges.count);
        bool* wrong = get<bool>(FLAGS, heads);
        memset(wrong, 0, heads);
        for_each(heads * ranges.count, call_.threads, [&](int index, int worker) {
            const int head = index / ranges.count, first = index % ranges.count * ranges.size;
            AttentionScratch buffers(scratch(worker), dim);
            const int last = smaller(first + ranges.size, count);
            const AttentionHead own = head_of(image, head), other = head_of(image + 1, head);
            if (!attend_both_ways(own, other, first, last, dim, buffers, sums + index * size)) mark(wrong + head);
        });
        const int panels = ceil_div(other_count, PANEL);
        for_each(heads * panels, call_.threads, [&](int index, int) {
            const int head = index / panels, first = index % panels * PANEL;
            float* of_head = sums + head * ranges.count * size;
            if (!finish_columns(head_of(image + 1, head), first, dim, of_head, size, ranges.count)) mark(wrong + head);
        });
        for (int head = 0; head < heads; ++head) {
            if (wrong[head]) attend_again(image, head);
        }
    }

    static void mark(bool* flag) { __atomic_store_n(flag, true, __ATOMIC_RELAXED); }

    // Attend both ways, each with its own similarity.
    void attend_again(int image, int head) {
        for (int side = 0; side < 2; ++side) {
            const AttentionHead own = head_of(image + side, head), other = head_of(image + 1 - side, head);
            const Pieces pieces(own.count, BLOCK_ROWS, TILE, 1);
            for_each(pieces.count, call_.threads, [&](int index, int worker) {
                AttentionScratch buffers(scratch(worker), block_.dim);
                const int first = index * pieces.size;
                attend(own, other, first, smaller(pieces.size, own.count - first), block_.dim, buffers);
            });
        }
    }

    const Block& block_;
    const BlockCall& call_;
    int tokens_ = 0;
    ptrdiff_t stride_ = 0;  // of panels of all tokens
    Operand *heads_ = nullptr, *message_ = nullptr, *keys_ = nullptr, *values_ = nullptr;
    char* scratch_ = nullptr;
    size_t per_thread_ = 0;
};

static void run_block(const void* block, const BlockCall& call) {
    LayerRun(*static_cast<const Block*>(block), call).run();
}
