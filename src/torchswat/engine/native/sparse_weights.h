// The kept weights of a layer, in the order in which a product walks them.
//
//     bucket (block, row): the kept weights from one block of source channels to one row of the result, by channel
//     starts[blocks*rows + 1]   where each bucket begins in the two arrays below
//     values[kept], offsets[kept]   a weight, and where its source lies in the packed tile (bytes)
//
// 6 bytes a kept weight. Tiles depend on the shape but not on the number of samples, and so do these lists.
#pragma once
#include "conv_tiles.h"

namespace torchswat::SWAT_ISA {

struct SparseWeights {
    const int32_t* starts;
    const float* values;
    const uint16_t* offsets;
};

}  // namespace torchswat::SWAT_ISA
