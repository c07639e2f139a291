// Bringing matrices into panels. Included by variant.cpp within the variant's namespace.

template <class T>
static T* allocate_many(size_t count) {
    return static_cast<T*>(allocate(count * sizeof(T)));
}

// A linear map whose rows of the weights, (outputs, inputs), are the columns of a right factor. `depth` is the number
// of inputs and `outputs` that of outputs, both with the padding between and behind them.
struct Linear {
    Operand* weight;
    float* bias;
    int depth, outputs;

    const Operand* panel(int index) const { return weight + (size_t)index * PANEL * depth; }
};

static void release_linear(Linear& linear) {
    release(linear.weight);
    release(linear.bias);
}

// Make a linear map from entry(output, input) and bias(output), which give 0 for padding.
template <class Entry, class Bias>
static Linear make_linear(int outputs, int depth, const Entry& entry, const Bias& bias) {
    Linear linear = {allocate_many<Operand>((size_t)outputs * depth), allocate_many<float>(outputs), depth, outputs};
    float column[2 * PANEL];
    for (int first = 0; first < outputs; first += PANEL) {
        for (int k = 0; k < depth; k += 2) {
            for (int c = 0; c < PANEL; ++c) {
                column[c] = entry(first + c, k);
                column[PANEL + c] = entry(first + c, k + 1);
            }
            store_right_rows(linear.weight + (size_t)first * depth, k, column, column + PANEL);
        }
        for (int c = 0; c < PANEL; ++c) linear.bias[first + c] = bias(first + c);
    }
    return linear;
}

// Copy `rows` rows of `width` floats, one behind the other, to panels.
static void pack_left(const float* from, int rows, int width, Operand* to, ptrdiff_t stride) {
    for (int first = 0; first < width; first += PANEL, to += stride) {
        const int rest = width - first;
        for (int row = 0; row < rows; ++row) {
            const float* source = from + (ptrdiff_t)row * width + first;
            if (rest >= PANEL) {
                store_operands(to + row * PANEL, load(source), load(source + LANES));
            } else {
                store_operands(to + row * PANEL, load_first(source, rest), load_first(source + LANES, rest - LANES));
            }
        }
    }
}
