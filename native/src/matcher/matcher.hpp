// The matcher's kernels of one instruction set. Included by variant.cpp within the variant's namespace.

#include "layout.hpp"
#include "attention.hpp"
#include "block.hpp"
#include "layer.hpp"
#include "assignment.hpp"

static const MatcherKernels* matcher_kernels() {
    static const MatcherKernels kernels = {
        pack_block, free_block, run_block, pack_assignment, free_assignment, assign};
    return &kernels;
}
