// All kernels, for the instruction set that this file is compiled for.
//
// Nothing of it may be shared with other variants: everything lives in the variant's own namespace, and no templates or
// inline functions of the standard library are used, of which the linker would keep one copy for all.
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.hpp"
#include "memory.hpp"
#include "threads.hpp"
#include "matcher/interface.hpp"
#include "detector/interface.hpp"

namespace keyglue {
namespace VARIANT {
namespace {

#include "simd.hpp"
#include "panels.hpp"
#if defined(VARIANT_amx) || defined(VARIANT_amx_emulated)
#include "amx.hpp"
#else
#include "gemm.hpp"
#endif
#include "parallel.hpp"
#include "matcher/matcher.hpp"
#include "detector/kernels.hpp"

}  // namespace
}  // namespace VARIANT

#define JOINED(a, b) a##b
#define KERNELS_OF(variant) JOINED(kernels_, variant)
#define TEXT(name) #name
#define NAME_OF(variant) TEXT(variant)

const Kernels* KERNELS_OF(VARIANT)() {
#if defined(VARIANT_amx) || defined(VARIANT_amx_emulated)
    constexpr bool bfloat16 = true;
#else
    constexpr bool bfloat16 = false;
#endif
#if defined(VARIANT_amx_emulated)
    constexpr const char* name = "amx-emulated";
#else
    constexpr const char* name = NAME_OF(VARIANT);
#endif
    static const Kernels kernels = {
        name, bfloat16, VARIANT::matcher_kernels(), VARIANT::detector_kernels(), VARIANT::works};
    return &kernels;
}

}  // namespace keyglue
