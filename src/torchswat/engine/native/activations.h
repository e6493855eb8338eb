// Compressed activations: what a layer keeps of its input for the backward pass.
//
//     dense        X [c][p][n]                float32, p = h * W + w, samples innermost
//     bits         [c][ceil(area / 16)][n]    uint16, bit (p % 16) of word (p / 16): this entry is kept
//     values       [count]                    float32, the kept entries in the order (c, n, p)
//     starts       [c + 1]                    int64, where each channel's values begin
//
// So any run of positions of a sample, or any run of samples of a channel, is one
// contiguous piece of `values`: each consumer cuts the slabs that fit it, and the form depends on no convolution.
// Bytes an entry: 4 * density + 1/8 (0.925 at sparsity 0.8; a 16-bit offset per value would make it 1.2).
#pragma once
#include <cstdint>

namespace torchswat {

constexpr int unit = 16;  // positions in a word of bits
static constexpr int64_t units(int64_t area) { return (area + unit - 1) / unit; }

}  // namespace torchswat
