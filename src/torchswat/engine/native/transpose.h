// A square of entries turned in registers: W x W floats in log2(W) rounds, each of which swaps the off-diagonal quarters
// of all blocks of one size; or 2W x 2W entries of 16 bits, which are two such squares of pairs.
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

// Row i of the square is `x[i]` before, and column i is `x[i]` after. Neighbours in a column become pairs, of which
// those of the even columns are one square and those of the odd columns another.
static inline void transpose(vf (&x)[2 * W]) {
    typedef uint32_t vu __attribute__((vector_size(4 * W)));
    vf even[W], odd[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        const vu upper = reinterpret_cast<vu>(x[2 * i]), lower = reinterpret_cast<vu>(x[2 * i + 1]);
        even[i] = reinterpret_cast<vf>((upper & 0xffff) | lower << 16);
        odd[i] = reinterpret_cast<vf>(upper >> 16 | (lower & 0xffff0000u));
    }
    transpose(even);
    transpose(odd);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[2 * i] = even[i], x[2 * i + 1] = odd[i];
}

}  // namespace torchswat::SWAT_ISA
