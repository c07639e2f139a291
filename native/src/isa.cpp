#include "isa.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace keyglue {
namespace {

#if defined(__x86_64__)

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers found;
    if (!__get_cpuid_count(leaf, subleaf, &found.eax, &found.ebx, &found.ecx, &found.edx)) return {};
    return found;
}

bool has(unsigned value, int bit) { return (value >> bit) & 1; }

// Register states that the operating system saves (XCR0).
unsigned saved_states() {
    if (!has(cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool saves(unsigned states) { return (saved_states() & states) == states; }

bool has_avx2() {
    const Registers first = cpuid(1, 0), seventh = cpuid(7, 0);
    return has(first.ecx, 28) && has(first.ecx, 12) && has(seventh.ebx, 5) && saves(0x6);  // AVX, FMA, AVX2
}

bool has_avx512() {
    const Registers seventh = cpuid(7, 0);
    const bool all = has(seventh.ebx, 16) && has(seventh.ebx, 17) && has(seventh.ebx, 30) && has(seventh.ebx, 31);
    return has_avx2() && all && saves(0xE6);  // F, DQ, BW, VL
}

// Linux lends the tile data only to processes that ask.
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

bool has_amx() {
    const Registers seventh = cpuid(7, 0), more = cpuid(7, 1);
    const bool tiles = has(seventh.edx, 24) && has(seventh.edx, 22);  // AMX-TILE, AMX-BF16
    return has_avx512() && tiles && has(more.eax, 5) && saves(0x600E6) && may_use_tiles();
}

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_amx() { return false; }

#endif

}  // namespace

bool can_run(Isa isa) {
    static const bool avx2 = has_avx2(), avx512 = has_avx512(), amx = has_amx();
    switch (isa) {
        case Isa::avx2: return avx2;
        case Isa::avx512: case Isa::amx_emulated: return avx512;
        case Isa::amx: return amx;
    }
    return false;
}

const char* name_of(Isa isa) {
    switch (isa) {
        case Isa::avx2: return "avx2";
        case Isa::avx512: return "avx512";
        case Isa::amx: return "amx";
        case Isa::amx_emulated: return "amx-emulated";
    }
    return "";
}

}  // namespace keyglue
