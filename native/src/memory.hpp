// Memory for kernels: aligned, and kept from one call to the next.
#pragma once

#include <cstddef>

namespace keyglue {

// Return memory aligned to 64 bytes, or end the process if there is none; free it with `release`.
void* allocate(std::size_t bytes);
void release(void* memory);

// Named buffers that grow as needed. Only one call at a time may use a workspace.
class Workspace {
  public:
    static constexpr int slots = 24;
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace();

    // Memory of a slot, undefined, until the slot is asked for again.
    void* get(int slot, std::size_t bytes);

  private:
    void* memory_[slots] = {};
    std::size_t bytes_[slots] = {};
};

}  // namespace keyglue
