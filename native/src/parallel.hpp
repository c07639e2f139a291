// parallel_for for lambdas, `for_each(count, threads, [&](int index, int worker) { ... })`, with AMX's tiles ready.
// Included by variant.cpp within the variant's namespace.

template <class Function>
static void call_body(void* context, int index, int worker) {
    begin_tiles();
    (*static_cast<const Function*>(context))(index, worker);
    end_tiles();
}

template <class Function>
static void for_each(int count, int threads, const Function& function) {
    parallel_for(count, threads, call_body<Function>, const_cast<Function*>(&function));
}
