// A pool of threads that waits between calls.
#pragma once

namespace keyglue {

// What a thread does with one index. `worker` is below the number of threads; no two threads have the same.
using Body = void (*)(void* context, int index, int worker);

// Call body(context, index, worker) for every index below count, in any order, on up to `threads` threads of which the
// caller is one. Returns when all are done. With one thread, or one index, no other thread is touched. Calls from
// several threads at a time take turns: those that find the pool busy do all the work themselves.
void parallel_for(int count, int threads, Body body, void* context);

}  // namespace keyglue
