// Choosing keypoints as find_keypoints in keypoints/nms.py does, around the kernel that finds peaks.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "detector/interface.hpp"

namespace keyglue {

struct ScoreMap {
    const float* data;
    int height, width;
};

struct SelectionSettings {
    int radius;
    float threshold;
    int border;
    int64_t most;  // negative: all
    bool border_right_bottom;
    int recovery_rounds;
};

struct Selection {
    bool valid = false;  // not where a score is NaN
    std::vector<float> keypoints, scores;
};

// Marks everything within `radius` of some pixels.
inline void cover(const ScoreMap& map, int radius, const int64_t* pixels, int64_t count, uint8_t* covered) {
    for (int64_t i = 0; i < count; i++) {
        const int64_t y = pixels[i] / map.width, x = pixels[i] % map.width;
        const int64_t left = std::max<int64_t>(0, x - radius), right = std::min<int64_t>(map.width, x + radius + 1);
        const int64_t top = std::max<int64_t>(0, y - radius), bottom = std::min<int64_t>(map.height, y + radius + 1);
        for (int64_t row = top; row < bottom; row++) memset(covered + row * map.width + left, 1, right - left);
    }
}

inline Selection select_keypoints(const DetectorKernels& kernels, const ScoreMap& map,
                                  const SelectionSettings& settings) {
    const auto inside = [&](int64_t pixel) {
        const int64_t y = pixel / map.width, x = pixel % map.width, border = settings.border;
        return y >= border && x >= border &&
               (!settings.border_right_bottom || (y < map.height - border && x < map.width - border));
    };
    const int64_t size = static_cast<int64_t>(map.height) * map.width;
    std::vector<uint8_t> covered(size);
    // Left uninitialised: only what is found is ever touched.
    std::vector<int64_t> kept;
    const std::unique_ptr<int64_t[]> found(new int64_t[size]);
    Selection selection;
    float bound = std::nextafter(settings.threshold, std::numeric_limits<float>::infinity());
    for (int round = 0; round <= settings.recovery_rounds; round++) {
        int64_t count =
            kernels.peaks(map.data, map.height, map.width, settings.radius, bound, covered.data(), found.get());
        if (count < 0) return selection;
        if (count == 0) break;
        if (round == 0 && settings.most > 0) {
            // What scores less than the best one that will be left out cannot change who is chosen.
            std::vector<float> values;
            for (int64_t i = 0; i < count; i++) {
                if (inside(found[i])) values.push_back(map.data[found[i]]);
            }
            if (settings.most < static_cast<int64_t>(values.size())) {
                std::nth_element(values.begin(), values.begin() + settings.most, values.end(), std::greater<float>());
                bound = values[settings.most];
                count = std::remove_if(found.get(), found.get() + count,
                                       [&](int64_t pixel) { return map.data[pixel] < bound; }) -
                        found.get();
            }
        }
        kept.insert(kept.end(), found.get(), found.get() + count);
        if (round < settings.recovery_rounds) cover(map, settings.radius, found.get(), count, covered.data());
    }
    kept.erase(std::remove_if(kept.begin(), kept.end(), [&](int64_t pixel) { return !inside(pixel); }), kept.end());
    if (settings.most >= 0 && settings.most < static_cast<int64_t>(kept.size())) {
        // The best first, equal ones in reading order.
        const auto better = [&](int64_t a, int64_t b) {
            return map.data[a] > map.data[b] || (map.data[a] == map.data[b] && a < b);
        };
        std::partial_sort(kept.begin(), kept.begin() + settings.most, kept.end(), better);
        kept.resize(settings.most);
    } else {
        std::sort(kept.begin(), kept.end());
    }
    for (const int64_t pixel : kept) {
        selection.keypoints.push_back(static_cast<float>(pixel % map.width));
        selection.keypoints.push_back(static_cast<float>(pixel / map.width));
        selection.scores.push_back(map.data[pixel]);
    }
    selection.valid = true;
    return selection;
}

}  // namespace keyglue
