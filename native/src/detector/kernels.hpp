// The detector's kernels of one instruction set. Included by variant.cpp within the variant's namespace.
namespace detector {

#include "detector/common.hpp"
#include "detector/maps.hpp"
#if defined(VARIANT_amx) || defined(VARIANT_amx_emulated)
#include "detector/bfloat16.hpp"
#else
#include "detector/winograd.hpp"
#endif
#include "detector/encoder.hpp"
#include "detector/heads.hpp"
#include "detector/peaks.hpp"
#include "detector/refinement.hpp"
#if !defined(VARIANT_amx) && !defined(VARIANT_amx_emulated)
#include "detector/training.hpp"

static const TrainingKernels training_kernels = {convolve, gate, weight_gradient};
static const TrainingKernels* const training = &training_kernels;
#else
static const TrainingKernels* const training = nullptr;
#endif

}  // namespace detector

static const DetectorKernels* detector_kernels() {
    static const DetectorKernels kernels = {detector::encode, detector::scores, detector::describe, detector::peaks,
                                            detector::peaks_near, detector::training};
    return &kernels;
}
