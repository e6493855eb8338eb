// AVX2 has neither compress nor expand: tables say, for each byte of bits, which lanes are kept, first to last, and
// which of these each lane is.
#pragma once
#include <cstdint>

#include "vec.h"

namespace torchswat::SWAT_ISA {

#if defined(__AVX2__) && !defined(__AVX512F__)
struct CompressedLanes {
    uint64_t lanes[256];  // eight bytes each
    constexpr CompressedLanes() : lanes() {
        for (int bits = 0; bits < 256; ++bits)
            for (int lane = 0, count = 0; lane < 8; ++lane)
                if (bits >> lane & 1) lanes[bits] |= uint64_t(lane) << 8 * count++;
    }
    constexpr uint64_t operator[](uint32_t bits) const { return lanes[bits]; }
};
static constexpr CompressedLanes compressed_lanes;

struct ExpandedLanes {
    uint64_t lanes[256];  // eight bytes each; of a lane that is not kept it says nothing
    constexpr ExpandedLanes() : lanes() {
        for (int bits = 0; bits < 256; ++bits)
            for (int lane = 0, count = 0; lane < 8; ++lane)
                if (bits >> lane & 1) lanes[bits] |= uint64_t(count++) << 8 * lane;
    }
    constexpr uint64_t operator[](uint32_t bits) const { return lanes[bits]; }
};
static constexpr ExpandedLanes expanded_lanes;

inline __m256i lanes_of(uint64_t bytes) { return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(bytes))); }
#endif

}  // namespace torchswat::SWAT_ISA
