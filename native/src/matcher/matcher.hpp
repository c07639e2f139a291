// The matcher's kernels of one instruction set. Included by variant.cpp within the variant's namespace.

#include "layout.hpp"
#include "attention.hpp"
#include "block.hpp"
#include "layer.hpp"
#include "assignment.hpp"
#if defined(VARIANT_amx) || defined(VARIANT_amx_emulated)
#include "attention_training.hpp"
#else
constexpr void (*attention_forward)(const AttentionForwardCall&) = nullptr;
constexpr void (*attention_gradient)(const AttentionGradientCall&) = nullptr;
#endif

static const MatcherKernels* matcher_kernels() {
    static const MatcherKernels kernels = {
        pack_block, free_block, run_block, pack_assignment, free_assignment, assign, attention_forward, attention_gradient};
    return &kernels;
}
