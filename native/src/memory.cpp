#include "memory.hpp"

#include <cstdlib>

namespace keyglue {

void* allocate(std::size_t bytes) {
    void* memory = std::aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (memory == nullptr) std::abort();
    return memory;
}

void release(void* memory) { std::free(memory); }

Workspace::~Workspace() {
    for (void* memory : memory_) release(memory);
}

void* Workspace::get(int slot, std::size_t bytes) {
    if (bytes > bytes_[slot] || memory_[slot] == nullptr) {
        release(memory_[slot]);
        memory_[slot] = allocate(bytes);
        bytes_[slot] = bytes;
    }
    return memory_[slot];
}

}  // namespace keyglue
