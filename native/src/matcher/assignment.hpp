// Matches of a pair without its assignment matrix. Included by variant.cpp within the variant's namespace.
//
// The similarity S is worked through in blocks of rows, three times: for the largest entry of each row and column, for
// the sums of exponentials relative to these, and for the best entry of each row and column of
// 2 S_ij - logsumexp_j S_i. - logsumexp_i S_.j + offset0_i + offset1_j. Columns have their numbers in each thread.

struct Assignment {
    int width;
    Linear projection;
};

static void* pack_assignment(const AssignmentWeights& from) {
    auto* assignment = allocate_many<Assignment>(1);
    const int width = from.width, padded = round_up(width, PANEL);
    assignment->width = width;
    assignment->projection = make_linear(
        padded, padded,
        [&](int output, int input) {
            return output < width && input < width ? from.projection[(size_t)output * width + input] : 0.0f;
        },
        [&](int output) { return output < width ? from.projection_bias[output] : 0.0f; });
    return assignment;
}

static void free_assignment(void* memory) {
    auto* assignment = static_cast<Assignment*>(memory);
    release_linear(assignment->projection);
    release(assignment);
}

// Rows of a block of the similarity.
constexpr int SCORE_ROWS = 64 / TILE * TILE;
// Up to this many entries (64 MB) the similarity is kept from the first pass to the others.
constexpr size_t KEPT_SCORES = 1 << 24;
// Below all similarities, without being infinite: the exponential of it is 0.
constexpr float NOWHERE = -1e30f;
constexpr float LOG2_E = 1.44269504f;

class AssignmentRun {
  public:
    AssignmentRun(const Assignment& assignment, const AssignmentCall& call)
        : assignment_(assignment), call_(call), columns_(round_up(call.count1, PANEL)),
          depth_(assignment.projection.depth), blocks_(ceil_div(call.count0, SCORE_ROWS)) {}

    bool run() {
        const size_t entries = (size_t)blocks_ * SCORE_ROWS * columns_;
        kept_ = entries <= KEPT_SCORES;
        const size_t block = (size_t)SCORE_ROWS * columns_;
        scores_ = get<float>(COLUMNS, kept_ ? entries : block * call_.threads);
        // Of rows: the largest entry and the sum, then the offset. Of columns the same, for each thread.
        rows_ = get<float>(FLAGS, 2 * (size_t)blocks_ * SCORE_ROWS + 2 * (size_t)columns_ * call_.threads);
        project();
        find_largest();
        if (!add_up()) return false;
        find_best();
        return true;
    }

  private:
    template <class T>
    T* get(Slot slot, size_t count) {
        return static_cast<T*>(call_.work->get(slot, count * sizeof(T)));
    }

    float* row_sums() const { return rows_ + (ptrdiff_t)blocks_ * SCORE_ROWS; }
    float* column_largest(int worker) const {
        return rows_ + 2 * (ptrdiff_t)blocks_ * SCORE_ROWS + 2 * (ptrdiff_t)columns_ * worker;
    }
    float* column_sums(int worker) const { return column_largest(worker) + columns_; }

    // Project the tokens of both images, and lay those of image 1 out as right factor.
    void project() {
        const Linear& map = assignment_.projection;
        const int panels = depth_ / PANEL, both = call_.count0 + call_.count1, width = assignment_.width;
        stride_ = (ptrdiff_t)(both + TILE + 1) * PANEL;
        left_ = get<Operand>(HEADS, panels * stride_);
        right_ = get<Operand>(KEYS, (size_t)columns_ * depth_);
        constexpr int most = MOST_ROWS;
        Operand* buffers = get<Operand>(PER_THREAD, (size_t)(most + TILE) * depth_ * call_.threads);
        const int pieces0 = ceil_div(call_.count0, most), pieces1 = ceil_div(call_.count1, most);
        for_each(pieces0 + pieces1, call_.threads, [&](int index, int worker) {
            const bool first = index < pieces0;
            const int start = (first ? index : index - pieces0) * most;
            const int rows = smaller(most, (first ? call_.count0 : call_.count1) - start);
            const float* x = (first ? call_.x0 : call_.x1) + (ptrdiff_t)start * width;
            Operand* buffer = buffers + (size_t)(most + TILE) * depth_ * worker;
            pack_left(x, rows, width, buffer, (ptrdiff_t)rows * PANEL);
            for (int panel = 0; panel < panels; ++panel) {
                Operand* to = left_ + panel * stride_ + (ptrdiff_t)(first ? start : call_.count0 + start) * PANEL;
                const Vec bias0 = load(map.bias + panel * PANEL), bias1 = load(map.bias + panel * PANEL + LANES);
                product(rows, Left{buffer, (ptrdiff_t)rows * PANEL}, map.panel(panel), depth_,
                    [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
                        store_operands(to + row * PANEL, v0 + bias0, v1 + bias1);
                    });
            }
        });
        for_each(columns_ / PANEL, call_.threads, [&](int index, int) {
            const int first = index * PANEL;
            for (int panel = 0; panel < panels; ++panel) {
                pack_right_transposed(
                    left_ + panel * stride_ + (ptrdiff_t)(call_.count0 + first) * PANEL,
                    smaller(PANEL, call_.count1 - first), right_ + (ptrdiff_t)first * depth_ + panel * PANEL * PANEL);
            }
        });
    }

    // Scores of a block of rows, in panels of SCORE_ROWS rows; those right of the last column are NOWHERE.
    float* scores(int block, int worker, bool compute) {
        float* to = scores_ + (size_t)(kept_ ? block : worker) * SCORE_ROWS * columns_;
        if (kept_ && !compute) return to;
        const int first = block * SCORE_ROWS, rows = rows_of(block);
        for (int column = 0; column < columns_; column += PANEL) {
            float* panel = to + (ptrdiff_t)column * SCORE_ROWS;
            const bool partial = call_.count1 - column < PANEL;
            const Left own = {left_ + (ptrdiff_t)first * PANEL, stride_};
            product(rows, own, right_ + (ptrdiff_t)column * depth_, depth_,
                [&](int row, Vec v0, Vec v1) __attribute__((always_inline)) {
                    if (partial) {
                        v0 = where_below(v0, column, call_.count1, broadcast(NOWHERE));
                        v1 = where_below(v1, column + LANES, call_.count1, broadcast(NOWHERE));
                    }
                    store(panel + row * PANEL, v0);
                    store(panel + row * PANEL + LANES, v1);
                });
        }
        return to;
    }

    int rows_of(int block) const { return smaller(SCORE_ROWS, call_.count0 - block * SCORE_ROWS); }

    void find_largest() {
        for (int worker = 0; worker < call_.threads; ++worker) {
            for (int column = 0; column < columns_; ++column) column_largest(worker)[column] = NOWHERE;
        }
        for_each(blocks_, call_.threads, [&](int block, int worker) {
            const float* from = scores(block, worker, true);
            float* largest = column_largest(worker);
            for (int row = 0; row < rows_of(block); ++row) {
                Vec best0 = broadcast(NOWHERE), best1 = best0;
                for (int column = 0; column < columns_; column += PANEL) {
                    const Vec v0 = load(from + column * SCORE_ROWS + row * PANEL);
                    const Vec v1 = load(from + column * SCORE_ROWS + row * PANEL + LANES);
                    best0 = maximum(v0, best0), best1 = maximum(v1, best1);
                    store(largest + column, maximum(v0, load(largest + column)));
                    store(largest + column + LANES, maximum(v1, load(largest + column + LANES)));
                }
                rows_[block * SCORE_ROWS + row] = maximum_of(maximum(best0, best1));
            }
        });
        for (int worker = 1; worker < call_.threads; ++worker) {
            for (int column = 0; column < columns_; column += LANES) {
                float* total = column_largest(0) + column;
                store(total, maximum(load(column_largest(worker) + column), load(total)));
            }
        }
    }

    // Sums of exponentials, then what is added to 2 S in each row and column. False if something is not a number.
    // Each part of the blocks has sums of its own, whichever thread does it, so that answers are always the same bits.
    bool add_up() {
        const int parts = call_.threads;
        for (int part = 0; part < parts; ++part) memset(column_sums(part), 0, sizeof(float) * columns_);
        const float* largest = column_largest(0);
        for_each(parts, call_.threads, [&](int part, int worker) {
            float* sums = column_sums(part);
            for (int block = blocks_ * part / parts; block < blocks_ * (part + 1) / parts; ++block) {
                add_up_block(block, scores(block, worker, false), largest, sums);
            }
        });
        bool right = true;
        for (int row = 0; row < call_.count0; ++row) {
            right = right && row_sums()[row] < __builtin_inff();
            rows_[row] = call_.offset0[row] - (rows_[row] + __builtin_logf(row_sums()[row]));
        }
        for (int column = 0; column < call_.count1; ++column) {
            float sum = 0;
            for (int part = 0; part < parts; ++part) sum += column_sums(part)[column];
            right = right && sum < __builtin_inff();
            column_sums(0)[column] = call_.offset1[column] - (largest[column] + __builtin_logf(sum));
        }
        for (int column = call_.count1; column < columns_; ++column) column_sums(0)[column] = 0;
        return right;
    }

    void add_up_block(int block, const float* from, const float* largest, float* sums) {
        for (int row = 0; row < rows_of(block); ++row) {
            const Vec of_row = broadcast(rows_[block * SCORE_ROWS + row]), log2_e = broadcast(LOG2_E);
            Vec sum{};
            for (int column = 0; column < columns_; column += LANES) {
                const int panel = column / PANEL * PANEL, place = column % PANEL;
                const Vec v = load(from + panel * SCORE_ROWS + row * PANEL + place);
                sum += exp2((v - of_row) * log2_e);
                store(sums + column, load(sums + column) + exp2((v - load(largest + column)) * log2_e));
            }
            row_sums()[block * SCORE_ROWS + row] = sum_of(sum);
        }
    }

    void find_best() {
        // Best value and its row, of each column, for each thread.
        float* bests = get<float>(MESSAGE, 2 * (size_t)columns_ * call_.threads);
        const float* offsets = column_sums(0);
        for (int worker = 0; worker < call_.threads; ++worker) {
            float* best = bests + 2 * (size_t)columns_ * worker;
            for (int column = 0; column < columns_; ++column) best[column] = -__builtin_inff();
            memset(best + columns_, 0, sizeof(float) * columns_);
        }
        for_each(blocks_, call_.threads, [&](int block, int worker) {
            const float* from = scores(block, worker, false);
            float* best = bests + 2 * (size_t)columns_ * worker;
            float* best_row = best + columns_;
            for (int row = 0; row < rows_of(block); ++row) {
                const int place = block * SCORE_ROWS + row;
                const Vec of_row = broadcast(rows_[place]), two = broadcast(2.0f);
                const Vec number = (Vec)broadcast_int(place);
                Vec highest = broadcast(-__builtin_inff());
                VecInt where{};
                for (int column = 0; column < columns_; column += LANES) {
                    const float* score = from + column / PANEL * PANEL * SCORE_ROWS + row * PANEL + column % PANEL;
                    const Vec v = fma(two, load(score), load(offsets + column)) + of_row;
                    const VecInt better = v > highest;
                    highest = better ? v : highest;
                    where = better ? broadcast_int(column) : where;
                    const Vec before = load(best + column);
                    store(best + column, v > before ? v : before);
                    store(best_row + column, v > before ? number : load(best_row + column));
                }
                choose(highest, where + lanes(), call_.best0 + place, call_.index0 + place);
            }
        });
        for (int column = 0; column < call_.count1; ++column) {
            float best = -__builtin_inff();
            int32_t chosen = 0;
            for (int worker = 0; worker < call_.threads; ++worker) {
                const float* own = bests + 2 * (size_t)columns_ * worker + column;
                int32_t row;
                memcpy(&row, own + columns_, sizeof row);
                if (*own > best || (*own == best && row < chosen)) best = *own, chosen = row;
            }
            call_.index1[column] = chosen;
        }
    }

    // The highest lane; of several the one with the lowest index.
    static void choose(Vec value, VecInt index, float* best, long long* chosen) {
        *best = value[0], *chosen = index[0];
        for (int lane = 1; lane < LANES; ++lane) {
            if (value[lane] > *best || (value[lane] == *best && index[lane] < *chosen)) {
                *best = value[lane], *chosen = index[lane];
            }
        }
    }

    const Assignment& assignment_;
    const AssignmentCall& call_;
    int columns_, depth_, blocks_;
    bool kept_ = false;
    ptrdiff_t stride_ = 0;
    float *scores_ = nullptr, *rows_ = nullptr;
    Operand *left_ = nullptr, *right_ = nullptr;
};

static bool assign(const void* assignment, const AssignmentCall& call) {
    return AssignmentRun(*static_cast<const Assignment*>(assignment), call).run();
}
