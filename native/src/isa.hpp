// Instruction sets that kernels exist for, and what this processor and operating system offer.
#pragma once

namespace keyglue {

enum class Isa { avx2, avx512, amx, amx_emulated };

// Whether kernels of this instruction set can run here. For AMX this asks the operating system for the permission to
// use the tiles, once.
bool can_run(Isa isa);

// "avx2", "avx512", "amx" or "amx-emulated".
const char* name_of(Isa isa);

}  // namespace keyglue
