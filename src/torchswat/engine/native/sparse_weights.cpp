// Kept weights, gathered for both products in two passes over the dense ones: count, then fill.
#include "sparse_weights.h"

namespace torchswat::SWAT_ISA {
namespace {

struct Keep {
    const uint8_t* mask;
    float threshold;
    bool operator()(float value, int64_t at) const {
        return mask ? mask[at] != 0 : __builtin_fabsf(value) >= threshold;
    }
};

template <class Visit> void each_bucket(const ConvShape& s, const Tiles& t, Product product, const Visit& visit) {
    for (int block = 0; block < t.blocks; block++)
        for (int row = 0; row < t.rows; row++) visit(block, row);
}

}  // namespace

int64_t count_weights(ConvShape s, const float* weights, const uint8_t* mask, float threshold, int product_index,
                      int32_t* starts) {
    const Product product = Product(product_index);
    const Tiles t = tiles_of(s, product);
    const Keep keep{mask, threshold};
    int64_t total = 0;
    const int classes = t.h.classes * t.w.classes;
    each_bucket(s, t, product, [&](int block, int row) {
        starts[int64_t(block) * t.rows + row] = int32_t(total);
        for (int c = block * t.block; c < (block + 1) * t.block && c < t.channels; c++)
            for (int r = 0; r < s.r; r++)
                for (int q = 0; q < s.s; q++) {
                    const int k = product == Product::forward ? row : c, cc = product == Product::forward ? c : row / classes;
                    const Tap tap = tap_of(s, t, product, r, q);
                    if (tap.result_class != row % classes) continue;
                    const int64_t at = ((int64_t(k) * s.c + cc) * s.r + r) * s.s + q;
                    total += keep(weights[at], at);
                }
    });
    starts[t.buckets()] = int32_t(total);
    return total;
}

void pack_weights(ConvShape s, const float* weights, const uint8_t* mask, float threshold, int product_index,
                  float* values, uint16_t* offsets) {
    const Product product = Product(product_index);
    const Tiles t = tiles_of(s, product);
    const Keep keep{mask, threshold};
    int64_t total = 0;
    const int classes = t.h.classes * t.w.classes;
    each_bucket(s, t, product, [&](int block, int row) {
        for (int c = block * t.block; c < (block + 1) * t.block && c < t.channels; c++)
            for (int r = 0; r < s.r; r++)
                for (int q = 0; q < s.s; q++) {
                    const int k = product == Product::forward ? row : c, cc = product == Product::forward ? c : row / classes;
                    const Tap tap = tap_of(s, t, product, r, q);
                    if (tap.result_class != row % classes) continue;
                    const int64_t at = ((int64_t(k) * s.c + cc) * s.r + r) * s.s + q;
                    if (!keep(weights[at], at)) continue;
                    values[total] = weights[at];
                    offsets[total++] = uint16_t((c - block * t.block) * t.channel_floats * 4 + tap.offset * 4);
                }
    });
}

int64_t bucket_count(ConvShape shape, int product) { return tiles_of(shape, Product(product)).buckets(); }

}  // namespace torchswat::SWAT_ISA
