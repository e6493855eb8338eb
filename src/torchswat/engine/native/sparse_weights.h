// The kept weights of a layer, in the order in which a product walks them.
//
//     block of source channels            block_capacity entries each, the kept ones at its beginning
//       row (result channel, class)       one after the other
//         list                            weights by source channel
//
//     starts[blocks][rows][lists + 1]  where each list begins in the two arrays below, and where the last one ends
//     values[], offsets[]              a weight, and where its source lies in the packed tile (vectors)
//
// A row has one list, or one a tap. By pattern it has seven, of groups of one to three weights of a row of the kernel
// that share an offset; instead of starts it has {start, groups of pattern 1, ..., groups of pattern 7}.
//
// 6 bytes a kept weight. Tiles depend on the shape but not on the number of samples, and so do these lists.
#pragma once
#include "bfloat16.h"
#include "conv_tiles.h"
#include "kernels.h"

namespace torchswat::SWAT_ISA {

struct SparseWeights {
    const int32_t* starts;
    const float* values;
    const uint16_t* offsets;
};

// Of pairs of bfloat16, a value is two weights of neighbouring source channels, one of which may be zero.
void conv_forward_pairs(const ConvShape& shape, const bf16* x, SparseWeights weights, const float* bias, bf16* y,
                        float* workspace, int threads);
void conv_grad_input_pairs(const ConvShape& shape, const bf16* grad_y, SparseWeights weights, bf16* grad_x,
                           float* workspace, int threads);
int64_t pair_starts(const ConvShape& shape, Product product);
int64_t pair_capacity(const ConvShape& shape, Product product);
Packed pack_pairs(const ConvShape& shape, const float* weights, const uint8_t* mask, float threshold,
                  PackedWeights forward, PackedWeights grad_input, int threads);
int64_t workspace_of(const ConvShape& shape, Product product, int channels, int threads);

inline int64_t block_starts(const Tiles& t) { return int64_t(t.rows()) * t.starts(); }

}  // namespace torchswat::SWAT_ISA
