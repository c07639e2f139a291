// What one instruction set offers. Plain data and function pointers only: this header is part of translation units that
// are compiled for different processors, and an inline function in it could come from the wrong one.
#pragma once

namespace keyglue {

struct MatcherKernels;
struct DetectorKernels;

struct Kernels {
    const char* name;
    bool bfloat16;  // products in bfloat16, else float32
    const MatcherKernels* matcher;
    const DetectorKernels* detector;  // null where the instruction set has none
    // Whether a small product gives the right numbers here; asked once before first use.
    bool (*works)();
};

const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();
const Kernels* kernels_amx_emulated();

// Kernels by name ("avx2", "avx512", "amx", "amx-emulated"); null if they cannot run here or there are none.
const Kernels* kernels_named(const char* name);

}  // namespace keyglue
