// The Python module: which kernels there are. The functions themselves are in matcher/ and detector/.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <string>
#include <vector>

#include "isa.hpp"
#include "kernels.hpp"

namespace nb = nanobind;

namespace keyglue {

void bind_matcher(nb::module_& module);
void bind_detector(nb::module_& module);

const Kernels* kernels_named(const char* name) {
#if defined(HAS_VARIANTS)
    struct Variant {
        Isa isa;
        const Kernels* (*kernels)();
    };
    static const Variant variants[] = {
        {Isa::amx, kernels_amx},
        {Isa::avx512, kernels_avx512},
        {Isa::avx2, kernels_avx2},
        {Isa::amx_emulated, kernels_amx_emulated},
    };
    for (const Variant& variant : variants) {
        if (std::strcmp(name, name_of(variant.isa)) != 0 || !can_run(variant.isa)) continue;
        const Kernels* kernels = variant.kernels();
        static bool known[4] = {}, works[4] = {};
        const int index = static_cast<int>(variant.isa);
        if (!known[index]) works[index] = kernels->works(), known[index] = true;
        return works[index] ? kernels : nullptr;
    }
#endif
    static_cast<void>(name);
    return nullptr;
}

namespace {

std::vector<std::string> supported() {
    std::vector<std::string> names;
    for (const char* name : {"amx", "avx512", "avx2", "amx-emulated"}) {
        if (kernels_named(name) != nullptr) names.emplace_back(name);
    }
    return names;
}

}  // namespace
}  // namespace keyglue

NB_MODULE(keyglue_native, module) {
    // keyglue keeps kernels and packed weights until the process ends, which is no leak.
    nb::set_leak_warnings(false);
    using keyglue::Kernels;
    module.doc() = "Compiled kernels of keyglue.";
    module.def("supported", &keyglue::supported, "Return the names of the kernels that run here, quickest first.");
    nb::class_<Kernels>(module, "Kernels", "The kernels of one instruction set.")
        .def_prop_ro("name", [](const Kernels& kernels) { return kernels.name; })
        .def_prop_ro("bfloat16", [](const Kernels& kernels) { return kernels.bfloat16; });
    module.def(
        "kernels",
        [](const std::string& name) {
            const Kernels* found = keyglue::kernels_named(name.c_str());
            if (found == nullptr) throw nb::value_error(("no kernels named " + name + " run here").c_str());
            return found;
        },
        nb::arg("name"), nb::rv_policy::reference,
        "Return the kernels of that name; ValueError if they do not run here.");
    keyglue::bind_matcher(module);
    keyglue::bind_detector(module);
}
