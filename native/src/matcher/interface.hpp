// What the matcher's kernels of every instruction set look like from outside. Plain data and function pointers only.
#pragma once

namespace keyglue {

class Workspace;

// One attention block, as folding.py describes it. All matrices are row-major (outputs, inputs), float32.
struct BlockWeights {
    int width;  // D
    int heads, key_value_heads, head_dim;
    bool shared;  // keys are the queries themselves
    bool rotary;  // queries and keys are turned, each pair of neighbouring dimensions
    float epsilon;
    const float *projection, *projection_bias;
    const float *first, *first_bias;
    const float *norm_weight, *norm_bias;
    const float *second, *second_bias;
};

// The tokens of several images, one behind the other.
struct BlockCall {
    float* x;               // (T, D), overwritten
    const float *cosine, *sine;  // (T, head_dim / 2); null without rotation
    const int* lengths;     // tokens of each image
    int images;
    bool cross;             // images 2p and 2p + 1 attend to each other, else each to itself
    int threads;
    Workspace* work;
};

struct AssignmentWeights {
    int width;
    const float *projection, *projection_bias;  // scaled so that products are the similarity
};

// Best entry of each row and column of 2 S - logsumexp_j S - logsumexp_i S + offset0_i + offset1_j.
struct AssignmentCall {
    const float *x0, *x1;            // (M, D), (N, D)
    const float *offset0, *offset1;  // (M,), (N,)
    float* best0;                    // (M,)
    long long *index0, *index1;      // (M,), (N,)
    int count0, count1;              // M, N >= 1
    int threads;
    Workspace* work;
};

// softmax(scale Q K^T) V in training; the same shapes as in AttentionGradientCall.
struct AttentionForwardCall {
    const unsigned short *query, *key, *value;
    unsigned short* out;
    float* logsumexp;
    int images, heads, queries, keys, dim;
    float scale;
    int threads;
};

// Gradients of softmax(scale Q K^T) V. Queries and what is like them are (images, queries, heads, dim), keys and values
// (images, keys, heads, dim), bfloat16; dim is a multiple of 32.
struct AttentionGradientCall {
    const unsigned short *query, *key, *value, *out, *gradient;
    const float* logsumexp;  // (images, heads, queries), of the logits
    unsigned short *to_query, *to_key, *to_value;
    int images, heads, queries, keys, dim;
    float scale;
    int threads;
};

struct MatcherKernels {
    void* (*pack_block)(const BlockWeights&);
    void (*free_block)(void*);
    void (*run_block)(const void*, const BlockCall&);
    void* (*pack_assignment)(const AssignmentWeights&);
    void (*free_assignment)(void*);
    // False where something is not a number; the results are then void.
    bool (*assign)(const void*, const AssignmentCall&);
    // Both null where products are in float32.
    void (*attention_forward)(const AttentionForwardCall&);
    void (*attention_gradient)(const AttentionGradientCall&);
};

}  // namespace keyglue
