// The matcher's functions for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <numeric>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "matcher/interface.hpp"
#include "memory.hpp"

namespace nb = nanobind;

namespace keyglue {
namespace {

template <class T, int dimensions>
using Array = nb::ndarray<T, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;
using Matrix = Array<const float, 2>;
using Vector = Array<const float, 1>;

void require(bool condition, const char* what) {
    if (!condition) throw nb::value_error(what);
}

void require_shape(const Matrix& matrix, size_t rows, size_t columns, const char* name) {
    if (matrix.shape(0) == rows && matrix.shape(1) == columns) return;
    const std::string expected = "(" + std::to_string(rows) + ", " + std::to_string(columns) + ")";
    const std::string found = "(" + std::to_string(matrix.shape(0)) + ", " + std::to_string(matrix.shape(1)) + ")";
    throw nb::value_error((std::string(name) + " has to be " + expected + ", got " + found).c_str());
}

class PackedBlock {
  public:
    PackedBlock(
        const Kernels& kernels, const Matrix& projection, const Vector& projection_bias, const Matrix& first,
        const Vector& first_bias, const Vector& norm_weight, const Vector& norm_bias, float epsilon,
        const Matrix& second, const Vector& second_bias, int heads, int key_value_heads, int head_dim, bool shared,
        bool rotary)
        : kernels_(*kernels.matcher), rotary_(rotary) {
        const size_t width = projection.shape(1);
        require(width > 0 && heads > 0 && key_value_heads > 0 && heads % key_value_heads == 0, "heads do not fit");
        require(head_dim > 0 && (!rotary || head_dim % 2 == 0), "head_dim has to be positive, and even to be turned");
        require(!shared || heads == key_value_heads, "shared keys are as many as queries");
        require(width == static_cast<size_t>(heads) * head_dim, "the width is not that of all heads");
        const size_t outputs = static_cast<size_t>(heads + (shared ? 1 : 2) * key_value_heads) * head_dim;
        require_shape(projection, outputs, width, "projection");
        require_shape(first, 2 * width, 2 * width, "first");
        require_shape(second, width, 2 * width, "second");
        require(projection_bias.size() == outputs && second_bias.size() == width, "a bias has the wrong size");
        require(first_bias.size() == 2 * width && norm_weight.size() == 2 * width && norm_bias.size() == 2 * width,
                "a bias or LayerNorm has the wrong size");
        width_ = static_cast<int>(width);
        head_dim_ = head_dim;
        const BlockWeights weights = {
            width_, heads, key_value_heads, head_dim, shared, rotary, epsilon,
            projection.data(), projection_bias.data(), first.data(), first_bias.data(),
            norm_weight.data(), norm_bias.data(), second.data(), second_bias.data()};
        packed_ = kernels_.pack_block(weights);
    }
    PackedBlock(const PackedBlock&) = delete;
    PackedBlock& operator=(const PackedBlock&) = delete;
    ~PackedBlock() { kernels_.free_block(packed_); }

    void run(const Array<float, 2>& x, const nb::object& cosine, const nb::object& sine,
             const std::vector<int>& lengths, bool cross, Workspace& work, int threads) const {
        const size_t tokens = x.shape(0);
        require(x.shape(1) == static_cast<size_t>(width_), "x has the wrong width");
        long long total = 0;
        for (const int length : lengths) {
            require(length >= 0, "lengths have to be 0 or more");
            total += length;
        }
        require(total == static_cast<long long>(tokens), "lengths do not add up to the tokens");
        require(lengths.size() % 2 == 0, "images come in pairs");
        BlockCall call = {x.data(), nullptr, nullptr, lengths.data(), static_cast<int>(lengths.size()),
                          cross, threads > 1 ? threads : 1, &work};
        Matrix turns[2];
        if (rotary_) {
            turns[0] = nb::cast<Matrix>(cosine);
            turns[1] = nb::cast<Matrix>(sine);
            require_shape(turns[0], tokens, head_dim_ / 2, "cosine");
            require_shape(turns[1], tokens, head_dim_ / 2, "sine");
            call.cosine = turns[0].data();
            call.sine = turns[1].data();
        }
        const nb::gil_scoped_release released;
        kernels_.run_block(packed_, call);
    }

  private:
    const MatcherKernels& kernels_;
    bool rotary_;
    int width_ = 0, head_dim_ = 0;
    void* packed_ = nullptr;
};

class PackedAssignment {
  public:
    PackedAssignment(const Kernels& kernels, const Matrix& projection, const Vector& projection_bias)
        : kernels_(*kernels.matcher), width_(projection.shape(0)) {
        require(width_ > 0, "the projection is empty");
        require_shape(projection, width_, width_, "projection");
        require(projection_bias.size() == width_, "projection_bias has the wrong size");
        packed_ = kernels_.pack_assignment({static_cast<int>(width_), projection.data(), projection_bias.data()});
    }
    PackedAssignment(const PackedAssignment&) = delete;
    PackedAssignment& operator=(const PackedAssignment&) = delete;
    ~PackedAssignment() { kernels_.free_assignment(packed_); }

    bool assign(const Matrix& x0, const Matrix& x1, const Vector& offset0, const Vector& offset1,
                const Array<float, 1>& best0, const Array<int64_t, 1>& index0, const Array<int64_t, 1>& index1,
                Workspace& work, int threads) const {
        const size_t count0 = x0.shape(0), count1 = x1.shape(0);
        require(count0 > 0 && count1 > 0, "both images need tokens");
        require_shape(x0, count0, width_, "x0");
        require_shape(x1, count1, width_, "x1");
        require(offset0.size() == count0 && best0.size() == count0 && index0.size() == count0,
                "offset0, best0 and index0 need as many entries as x0 has rows");
        require(offset1.size() == count1 && index1.size() == count1,
                "offset1 and index1 need as many entries as x1 has rows");
        const AssignmentCall call = {
            x0.data(), x1.data(), offset0.data(), offset1.data(), best0.data(),
            reinterpret_cast<long long*>(index0.data()), reinterpret_cast<long long*>(index1.data()),
            static_cast<int>(count0), static_cast<int>(count1), threads > 1 ? threads : 1, &work};
        const nb::gil_scoped_release released;
        return kernels_.assign(packed_, call);
    }

  private:
    const MatcherKernels& kernels_;
    size_t width_;
    void* packed_ = nullptr;
};

// (images, tokens, heads, dim) of bfloat16, which C++17 has no type for.
using Halves = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;

void require_halves(std::initializer_list<const Halves*> arrays) {
    const nb::dlpack::dtype bfloat16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
    for (const Halves* array : arrays) require(array->dtype() == bfloat16, "queries, keys and values have to be bfloat16");
}

void require_same(const Halves& array, std::initializer_list<const Halves*> others) {
    for (const Halves* other : others) {
        for (size_t axis = 0; axis < 4; axis++) {
            require(array.shape(axis) == other->shape(axis), "what is like queries, or like keys, differs in shape");
        }
    }
}

void require_heads(const Halves& query, const Halves& key, const Array<const float, 3>& logsumexp) {
    require(query.shape(0) == key.shape(0) && query.shape(2) == key.shape(2) && query.shape(3) == key.shape(3),
            "queries and keys differ in images, heads or size");
    require(query.size() > 0 && key.size() > 0 && query.shape(3) % 32 == 0, "a head's size has to be a multiple of 32");
    require(logsumexp.shape(0) == query.shape(0) && logsumexp.shape(1) == query.shape(2) &&
                logsumexp.shape(2) == query.shape(1),
            "logsumexp has to be (images, heads, queries)");
}

unsigned short* data_of(const Halves& array) { return static_cast<unsigned short*>(array.data()); }

int size_of(const Halves& array, size_t axis) { return static_cast<int>(array.shape(axis)); }

void attention_forward(const Kernels& kernels, const Halves& query, const Halves& key, const Halves& value, float scale,
                       const Halves& out, const Array<float, 3>& logsumexp, int threads) {
    require(kernels.matcher->attention_forward != nullptr, "these kernels have no attention for training");
    require_halves({&query, &key, &value, &out});
    require_same(query, {&out});
    require_same(key, {&value});
    require_heads(query, key, Array<const float, 3>(logsumexp));
    const AttentionForwardCall call = {
        data_of(query), data_of(key), data_of(value), data_of(out), logsumexp.data(), size_of(query, 0),
        size_of(query, 2), size_of(query, 1), size_of(key, 1), size_of(query, 3), scale, threads > 1 ? threads : 1};
    const nb::gil_scoped_release released;
    kernels.matcher->attention_forward(call);
}

void attention_gradient(const Kernels& kernels, const Halves& query, const Halves& key, const Halves& value,
                        const Halves& out, const Halves& gradient, const Array<const float, 3>& logsumexp, float scale,
                        const Halves& to_query, const Halves& to_key, const Halves& to_value, int threads) {
    require(kernels.matcher->attention_gradient != nullptr, "these kernels have no attention for training");
    require_halves({&query, &key, &value, &out, &gradient, &to_query, &to_key, &to_value});
    require_same(query, {&out, &gradient, &to_query});
    require_same(key, {&value, &to_key, &to_value});
    require_heads(query, key, logsumexp);
    const AttentionGradientCall call = {
        data_of(query), data_of(key), data_of(value), data_of(out), data_of(gradient), logsumexp.data(),
        data_of(to_query), data_of(to_key), data_of(to_value), size_of(query, 0), size_of(query, 2), size_of(query, 1),
        size_of(key, 1), size_of(query, 3), scale, threads > 1 ? threads : 1};
    const nb::gil_scoped_release released;
    kernels.matcher->attention_gradient(call);
}

}  // namespace

void bind_matcher(nb::module_& module) {
    nb::class_<Workspace>(module, "Workspace", "Memory that is used again from call to call, by one call at a time.")
        .def(nb::init<>());
    nb::class_<PackedBlock>(module, "Block", "One attention block of LightGlue with its weights laid out.")
        .def(nb::init<const Kernels&, const Matrix&, const Vector&, const Matrix&, const Vector&, const Vector&,
                      const Vector&, float, const Matrix&, const Vector&, int, int, int, bool, bool>(),
             nb::arg("kernels"), nb::arg("projection"), nb::arg("projection_bias"), nb::arg("first"),
             nb::arg("first_bias"), nb::arg("norm_weight"), nb::arg("norm_bias"), nb::arg("epsilon"),
             nb::arg("second"), nb::arg("second_bias"), nb::arg("heads"), nb::arg("key_value_heads"),
             nb::arg("head_dim"), nb::arg("shared"), nb::arg("rotary"))
        .def("run", &PackedBlock::run, nb::arg("x").noconvert(), nb::arg("cosine").none(), nb::arg("sine").none(),
             nb::arg("lengths"), nb::arg("cross"), nb::arg("work"), nb::arg("threads"),
             "Update the tokens x (T, D) of images of these lengths in place.");
    nb::class_<PackedAssignment>(module, "Assignment", "One assignment layer with its projection laid out.")
        .def(nb::init<const Kernels&, const Matrix&, const Vector&>(), nb::arg("kernels"), nb::arg("projection"),
             nb::arg("projection_bias"))
        .def("assign", &PackedAssignment::assign, nb::arg("x0"), nb::arg("x1"), nb::arg("offset0"), nb::arg("offset1"),
             nb::arg("best0").noconvert(), nb::arg("index0").noconvert(), nb::arg("index1").noconvert(),
             nb::arg("work"), nb::arg("threads"),
             "Find the best entry of each row and column of the log assignment of tokens x0 (M, D) and x1 (N, D), and "
             "return whether all was a number; otherwise the results are void.");
    module.def("attention_forward", &attention_forward, nb::arg("kernels"), nb::arg("query"), nb::arg("key"),
               nb::arg("value"), nb::arg("scale"), nb::arg("out").noconvert(), nb::arg("logsumexp").noconvert(),
               nb::arg("threads"), "Write softmax attention and the log of its sums, in bfloat16.");
    module.def("attention_gradient", &attention_gradient, nb::arg("kernels"), nb::arg("query"), nb::arg("key"),
               nb::arg("value"), nb::arg("out"), nb::arg("gradient"), nb::arg("logsumexp"), nb::arg("scale"),
               nb::arg("to_query").noconvert(), nb::arg("to_key").noconvert(), nb::arg("to_value").noconvert(),
               nb::arg("threads"), "Write the gradients of queries, keys and values of softmax attention, in bfloat16.");
}

}  // namespace keyglue
