// A square of floats, W x W, turned in registers: log2(W) rounds, each of which swaps the off-diagonal quarters of
// all blocks of one size.
#pragma once
#include "vec.h"

namespace torchswat::SWAT_ISA {

typedef int vi __attribute__((vector_size(4 * W)));

template <int Step> static inline void swap_quarters(vf (&x)[W]) {
    vi low{}, high{};  // lanes of (a, b): a's own where the lane lies in the first half of its block, else b's
    for (int lane = 0; lane < W; ++lane) {
        low[lane] = lane & Step ? W + lane - Step : lane;
        high[lane] = lane & Step ? W + lane : lane + Step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        if (i & Step) continue;
        const vf a = x[i], b = x[i + Step];
        x[i] = __builtin_shuffle(a, b, low);
        x[i + Step] = __builtin_shuffle(a, b, high);
    }
}

static inline void transpose(vf (&x)[W]) {
    if constexpr (W > 8) swap_quarters<8>(x);
    if constexpr (W > 4) swap_quarters<4>(x);
    swap_quarters<2>(x);
    swap_quarters<1>(x);
}

}  // namespace torchswat::SWAT_ISA
