// What the detector's kernels of every instruction set look like from outside. Plain data and function pointers only.
//
// Maps are channels last. Channels of maps between layers are padded with zeros to a multiple of 16, and rows of maps
// with zeros: one pixel at the left, and at the right so many that 4 divides the rest, and one.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace keyglue {

// A convolution; how its weights lie is told where it is used.
struct Layer {
    int in_channels, out_channels;  // not padded
    const void* weight;
    const float* bias;  // padded
};

struct GrayImage {
    const float* data;
    int height, width;
    ptrdiff_t stride;  // from row to row, in floats
};

// A map of cells, the encoder's output.
struct CellMap {
    const float* data;
    int height, width;
};

// A 3 x 3 convolution with ReLU, then a 1 x 1 convolution.
struct Head {
    Layer hidden, last;
};

// Maps of several images (count, height, width, channels) without padding; 16 divides channels.
struct Maps {
    const float* data;
    int count, height, width, channels;
};

// What training needs of a 3 x 3 convolution, in float32.
struct TrainingKernels {
    // Writes the convolution (count, height, width, C'), with bias and ReLU if the layer has a bias, and, unless null,
    // its 2 x 2 maxima.
    void (*convolve)(const Maps& input, const Layer& layer, int threads, float* out, float* pooled);
    // Writes the gradient before ReLU from that after it, or that after the 2 x 2 maxima, and its sum over pixels.
    void (*gate)(const Maps& output, const float* gradient, bool pooled, float* out, float* bias);
    // Adds the gradient of the transformed weights (36, C, C').
    void (*weight_gradient)(const Maps& input, const Maps& gradient, float* sums);
};

struct DetectorKernels {
    // Computes the encoder's output, zeroed before: `layers` are all 3 x 3 convolutions with ReLU, the second of each
    // pair but the last followed by 2 x 2 maxima; `band` rows of the output at a time.
    void (*encode)(const GrayImage& image, const Layer* layers, int count, int band, int threads, float* encoded);
    // Writes each pixel's share (cell h, cell w) in its cell's softmax.
    void (*scores)(const CellMap& map, const Head& head, int cell, int threads, float* scores);
    // Writes unit-length descriptors (count, D) at keypoints (count, 2) in pixels.
    void (*describe)(const CellMap& map, const Head& head, int cell, const float* keypoints, int count, int threads,
                     float* descriptors);
    // Writes the pixels, in reading order, whose score is at least `bound`, not covered, and the largest of those
    // within `radius` pixels that are so too. `covered` is a map of bytes; `bound` is positive. Returns how many, or -1
    // if a score is NaN.
    int64_t (*peaks)(const float* scores, int height, int width, int radius, float bound, const uint8_t* covered,
                     int64_t* pixels);
    // Writes, for each keypoint (count, 2), the highest peak of the determinant of the image's Hessian within ``radius``
    // pixels along each axis of its pixel: its place between pixels, and its pixel y w + x; -1 if there is none, which
    // leaves the place. ``weights`` (3, taps) are a Gaussian and its derivatives, the determinant is times ``scale``.
    void (*peaks_near)(const GrayImage& image, const float* keypoints, int count, int radius, const float* weights,
                       int taps, float scale, int threads, float* places, int64_t* pixels);
    // Null where training has none.
    const TrainingKernels* training;
};

}  // namespace keyglue
