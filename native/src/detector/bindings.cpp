// The detector's Python functions: arrays are looked at, then handed to the kernels without the interpreter's lock.
#include "detector/interface.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "detector/selection.hpp"
#include "../kernels.hpp"

namespace nb = nanobind;

namespace keyglue {
namespace {

using Array = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Weight = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Pixels = nb::ndarray<int64_t, nb::c_contig, nb::device::cpu>;
// Channels in and out, packed weights, bias.
using LayerArrays = std::tuple<int, int, Weight, Array>;

void require(bool condition, const char* text) {
    if (!condition) throw nb::value_error(text);
}

size_t padded(int channels) { return (static_cast<size_t>(channels) + 15) / 16 * 16; }

enum class Kind { first, middle, last };

// The first layer of the encoder and the last ones of the heads have float32 weights as they are; of those between the
// kernels have their own kind.
Layer layer_of(const Kernels& kernels, const LayerArrays& arrays, Kind kind) {
    const auto& [in_channels, out_channels, weight, bias] = arrays;
    require(in_channels > 0 && out_channels > 0, "a layer has no channels");
    const bool halves = kind == Kind::middle && kernels.bfloat16;
    const nb::dlpack::dtype bfloat16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
    require(weight.dtype() == (halves ? bfloat16 : nb::dtype<float>()), "a layer's weights have a wrong type");
    const size_t depth = halves ? (static_cast<size_t>(in_channels) + 31) / 32 * 32 : static_cast<size_t>(in_channels);
    const size_t matrices = kind == Kind::last ? 1 : kind == Kind::first || halves ? 9 : 36;
    const size_t columns = halves ? (static_cast<size_t>(out_channels) + 31) / 32 * 32 : padded(out_channels);
    require(weight.size() == matrices * depth * columns, "a layer's weights have a wrong size");
    require(bias.size() == padded(out_channels), "a layer's bias has a wrong size");
    return {in_channels, out_channels, weight.data(), bias.data()};
}

Head head_of(const Kernels& kernels, const LayerArrays& hidden, const LayerArrays& last) {
    const Head head = {layer_of(kernels, hidden, Kind::middle), layer_of(kernels, last, Kind::last)};
    require(head.last.in_channels == head.hidden.out_channels, "the head's layers do not fit");
    return head;
}

CellMap map_of(const Array& encoded, int width, const Head& head) {
    require(encoded.ndim() == 3 && encoded.shape(0) > 0 && width > 0, "a map must have three dimensions");
    require(encoded.shape(1) == static_cast<size_t>((width + 3) / 4 * 4 + 2), "the map's width is wrong");
    require(encoded.shape(2) == padded(head.hidden.in_channels), "the map's channels are wrong");
    return {encoded.data(), static_cast<int>(encoded.shape(0)), width};
}

void encode(const Kernels& kernels, const Array& image, const std::vector<LayerArrays>& arrays, int band, int threads,
            const Output& encoded) {
    require(image.ndim() == 2, "an image must have two dimensions");
    require(arrays.size() >= 4 && arrays.size() % 2 == 0 && arrays.size() <= 32, "there must be pairs of layers");
    require(band > 0 && band % 4 == 0 && threads > 0, "band must be a multiple of 4, threads positive");
    std::vector<Layer> layers;
    for (const LayerArrays& layer : arrays) {
        layers.push_back(layer_of(kernels, layer, layers.empty() ? Kind::first : Kind::middle));
    }
    for (size_t i = 0; i < layers.size(); i++) {
        const int before = i == 0 ? 1 : layers[i - 1].out_channels;
        require(layers[i].in_channels == before, "the encoder's layers do not fit");
    }
    const GrayImage gray = {image.data(), static_cast<int>(image.shape(0)), static_cast<int>(image.shape(1)),
                            static_cast<ptrdiff_t>(image.shape(1))};
    const int halvings = static_cast<int>(arrays.size()) / 2 - 1;
    const size_t height = gray.height >> halvings, width = gray.width >> halvings;
    require(height > 0 && width > 0, "the image is smaller than a cell");
    require(encoded.ndim() == 3 && encoded.shape(0) == height && encoded.shape(1) == (width + 3) / 4 * 4 + 2 &&
                encoded.shape(2) == padded(layers.back().out_channels),
            "the map has a wrong shape");
    const nb::gil_scoped_release unlocked;
    kernels.detector->encode(gray, layers.data(), static_cast<int>(layers.size()), band, threads, encoded.data());
}

void scores(const Kernels& kernels, const Array& encoded, int width, const LayerArrays& hidden, const LayerArrays& last,
            int cell, int threads, const Output& out) {
    const Head head = head_of(kernels, hidden, last);
    const CellMap map = map_of(encoded, width, head);
    require(cell > 0 && head.last.out_channels == cell * cell + 1 && threads > 0, "the cell does not fit the head");
    require(out.ndim() == 2 && out.shape(0) == static_cast<size_t>(map.height) * cell &&
                out.shape(1) == static_cast<size_t>(width) * cell,
            "the scores have a wrong shape");
    const nb::gil_scoped_release unlocked;
    kernels.detector->scores(map, head, cell, threads, out.data());
}

void describe(const Kernels& kernels, const Array& encoded, int width, const LayerArrays& hidden,
              const LayerArrays& last, int cell, const Array& keypoints, int threads, const Output& out) {
    const Head head = head_of(kernels, hidden, last);
    const CellMap map = map_of(encoded, width, head);
    require(keypoints.ndim() == 2 && keypoints.shape(1) == 2 && cell > 0 && threads > 0, "keypoints must be (N, 2)");
    require(out.ndim() == 2 && out.shape(0) == keypoints.shape(0) &&
                out.shape(1) == static_cast<size_t>(head.last.out_channels),
            "the descriptors have a wrong shape");
    const int count = static_cast<int>(keypoints.shape(0));
    const nb::gil_scoped_release unlocked;
    kernels.detector->describe(map, head, cell, keypoints.data(), count, threads, out.data());
}

void peaks_near(const Kernels& kernels, const Array& image, const Array& keypoints, int radius, const Array& weights,
                float scale, int threads, const Output& places, const Pixels& pixels) {
    require(image.ndim() == 2 && image.size() > 0 && radius >= 0 && radius <= 64 && threads > 0, "an image must be (h, w)");
    require(weights.ndim() == 2 && weights.shape(0) == 3 && weights.shape(1) % 2 == 1, "weights must be (3, odd)");
    require(keypoints.ndim() == 2 && keypoints.shape(1) == 2 && places.size() == keypoints.size() &&
                pixels.size() == keypoints.shape(0),
            "keypoints must be (N, 2), and what is written as many");
    const GrayImage gray = {image.data(), static_cast<int>(image.shape(0)), static_cast<int>(image.shape(1)),
                            static_cast<ptrdiff_t>(image.shape(1))};
    for (size_t i = 0; i < keypoints.size(); i++) {
        const float most = static_cast<float>(i % 2 ? gray.height : gray.width);
        require(keypoints.data()[i] >= 0 && keypoints.data()[i] < most, "a keypoint lies outside the image");
    }
    const nb::gil_scoped_release unlocked;
    kernels.detector->peaks_near(gray, keypoints.data(), static_cast<int>(keypoints.shape(0)), radius, weights.data(),
                                 static_cast<int>(weights.shape(1)), scale, threads, places.data(), pixels.data());
}

Maps maps_of(const Array& array) {
    require(array.ndim() == 4 && array.size() > 0, "maps must have four dimensions");
    require(array.shape(3) % 16 == 0, "channels must be a multiple of 16");
    return {array.data(), static_cast<int>(array.shape(0)), static_cast<int>(array.shape(1)),
            static_cast<int>(array.shape(2)), static_cast<int>(array.shape(3))};
}

const TrainingKernels& training_of(const Kernels& kernels) {
    require(kernels.detector->training != nullptr, "these kernels have none for training");
    return *kernels.detector->training;
}

bool same_size(const Maps& maps, const Array& other, size_t divided = 1) {
    return other.ndim() == 4 && other.shape(0) == static_cast<size_t>(maps.count) &&
           other.shape(1) == maps.height / divided && other.shape(2) == maps.width / divided;
}

void convolve(const Kernels& kernels, const Array& input, const Array& weight, std::optional<Array> bias, int threads,
              const Output& out, std::optional<Output> pooled) {
    const Maps maps = maps_of(input);
    require(out.ndim() == 4 && same_size(maps, Array(out)) && out.shape(3) % 16 == 0, "the output has a wrong shape");
    const int channels = static_cast<int>(out.shape(3));
    require(weight.size() == 36 * static_cast<size_t>(maps.channels) * channels, "the weights have a wrong size");
    require(!bias || bias->size() == out.shape(3), "the bias has a wrong size");
    require(!pooled || (same_size(maps, Array(*pooled), 2) && pooled->shape(3) == out.shape(3)),
            "the maxima have a wrong shape");
    require(threads > 0, "threads must be positive");
    const Layer layer = {maps.channels, channels, weight.data(), bias ? bias->data() : nullptr};
    const TrainingKernels& training = training_of(kernels);
    const nb::gil_scoped_release unlocked;
    training.convolve(maps, layer, threads, out.data(), pooled ? pooled->data() : nullptr);
}

void gate(const Kernels& kernels, const Array& output, const Array& gradient, bool pooled, const Output& out,
          const Output& bias) {
    const Maps maps = maps_of(output);
    require(same_size(maps, gradient, pooled ? 2 : 1) && gradient.shape(3) == output.shape(3) &&
                out.size() == output.size() && bias.size() == output.shape(3),
            "the gradient has a wrong shape");
    const TrainingKernels& training = training_of(kernels);
    const nb::gil_scoped_release unlocked;
    training.gate(maps, gradient.data(), pooled, out.data(), bias.data());
}

void weight_gradient(const Kernels& kernels, const Array& input, const Array& gradient, const Output& sums) {
    const Maps from = maps_of(input), with = maps_of(gradient);
    require(same_size(from, gradient), "input and gradient have different shapes");
    require(sums.size() == 36 * static_cast<size_t>(from.channels) * with.channels, "the sums have a wrong size");
    const TrainingKernels& training = training_of(kernels);
    const nb::gil_scoped_release unlocked;
    training.weight_gradient(from, with, sums.data());
}

template <class T>
nb::ndarray<nb::numpy, T> array_of(std::vector<T>&& values, size_t columns) {
    auto* kept = new std::vector<T>(std::move(values));
    const nb::capsule owner(kept, [](void* data) noexcept { delete static_cast<std::vector<T>*>(data); });
    const size_t count = kept->size() / columns;
    if (columns == 1) return nb::ndarray<nb::numpy, T>(kept->data(), {count}, owner);
    return nb::ndarray<nb::numpy, T>(kept->data(), {count, columns}, owner);
}

nb::object find_keypoints(const Kernels& kernels, const Array& scores, int radius, float threshold, int border,
                          int64_t most, bool border_right_bottom, int recovery_rounds) {
    require(scores.ndim() == 2 && radius >= 0 && border >= 0 && threshold >= 0, "scores must be (h, w)");
    ScoreMap map = {scores.data(), static_cast<int>(scores.shape(0)), static_cast<int>(scores.shape(1))};
    Selection selection;
    {
        const nb::gil_scoped_release unlocked;
        selection = select_keypoints(*kernels.detector, map,
                                     {radius, threshold, border, most, border_right_bottom, recovery_rounds});
    }
    if (!selection.valid) return nb::none();
    return nb::make_tuple(array_of(std::move(selection.keypoints), 2), array_of(std::move(selection.scores), 1));
}

}  // namespace

void bind_detector(nb::module_& module) {
    // Kernels that train have no layers in bfloat16.
    module.def("trains", [](const Kernels& kernels) { return kernels.detector->training != nullptr; },
               nb::arg("kernels"), "Tell whether there are kernels for training.");
    module.def("encode", &encode, nb::arg("kernels"), nb::arg("image"), nb::arg("layers"), nb::arg("band"),
               nb::arg("threads"), nb::arg("encoded"), "Write SuperPoint's encoder's output of an image.");
    module.def("scores", &scores, nb::arg("kernels"), nb::arg("encoded"), nb::arg("width"), nb::arg("hidden"),
               nb::arg("last"), nb::arg("cell"), nb::arg("threads"), nb::arg("scores"),
               "Write the probability of each pixel to be a keypoint.");
    module.def("describe", &describe, nb::arg("kernels"), nb::arg("encoded"), nb::arg("width"), nb::arg("hidden"),
               nb::arg("last"), nb::arg("cell"), nb::arg("keypoints"), nb::arg("threads"), nb::arg("descriptors"),
               "Write the descriptors at keypoints.");
    module.def("peaks_near", &peaks_near, nb::arg("kernels"), nb::arg("image"), nb::arg("keypoints"), nb::arg("radius"),
               nb::arg("weights"), nb::arg("scale"), nb::arg("threads"), nb::arg("places"), nb::arg("pixels"),
               "Write the peaks of the determinant of the image's Hessian near keypoints.");
    module.def("convolve", &convolve, nb::arg("kernels"), nb::arg("input"), nb::arg("weight"),
               nb::arg("bias").none(), nb::arg("threads"), nb::arg("out"), nb::arg("pooled").none(),
               "Write a 3 x 3 convolution of maps, and its 2 x 2 maxima.");
    module.def("gate", &gate, nb::arg("kernels"), nb::arg("output"), nb::arg("gradient"), nb::arg("pooled"),
               nb::arg("out"), nb::arg("bias"), "Write the gradient before ReLU, and that of the bias.");
    module.def("weight_gradient", &weight_gradient, nb::arg("kernels"), nb::arg("input"), nb::arg("gradient"),
               nb::arg("sums"), "Add the gradient of a convolution's transformed weights.");
    module.def("find_keypoints", &find_keypoints, nb::arg("kernels"), nb::arg("scores"), nb::arg("radius"),
               nb::arg("threshold"), nb::arg("border"), nb::arg("max_keypoints"), nb::arg("border_right_bottom"),
               nb::arg("recovery_rounds"), "Return keypoints and their scores, or None if a score is NaN.");
}

}  // namespace keyglue
