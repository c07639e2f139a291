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
};

}  // namespace keyglue
