// AVX2 has no compress: a table says, for each byte of bits, which lanes are kept, first to last.
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
#endif

}  // namespace torchswat::SWAT_ISA
