// The choice of tile: the cheapest by a count of loads, the scarcest resource of the inner loop.
#include "conv_tiles.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int cache_bytes = 36 * 1024;   // what a block of channels may fill of the first-level cache
constexpr int offset_bytes = 64 * 1024;  // what a 16-bit offset reaches

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int smaller(int a, int b) { return a < b ? a : b; }

Axis axis_of(Product product, int in, int out, int kernel, int stride, int pad) {
    if (product == Product::forward) {
        return {in, stride, pad, smaller(stride, kernel), out, 1, 0, 1, 0, out, 0, 0};
    }
    const int reach = ceil_div(kernel, stride) - 1;
    return {out, 1, reach, 1, in, stride, pad, stride, pad / stride, ceil_div(in + pad, stride), 0, 0};
}

void cut(Tiles& t, const ConvShape& shape, int tile_h, int tile_w) {
    t.h.tile = tile_h;
    t.w.tile = tile_w;
    t.h.extent = tile_h + ceil_div(shape.r, shape.stride_h) - 1;
    t.w.extent = tile_w + ceil_div(shape.s, shape.stride_w) - 1;
    t.channel_floats = t.h.phases * t.w.phases * t.h.extent * t.w.extent * W;
    const int most = cache_bytes / (t.channel_floats * int(sizeof(float)));
    t.blocks = ceil_div(t.channels, most < 1 ? 1 : most);
    t.block = ceil_div(t.channels, t.blocks);
    t.blocks = ceil_div(t.channels, t.block);
}

// Loads and stores of vectors for the whole product and one group of samples, at a density of 0.2.
double cost(const Tiles& t, const ConvShape& shape) {
    const double positions = t.h.tile * t.w.tile;
    const double kept = 0.2 * t.channels * shape.r * shape.s / (t.h.classes * t.w.classes);
    const double a_row = kept * (positions + 1.5) + t.blocks * (2 * positions + 16);
    const double packing = 4.0 * t.channels * t.channel_floats / W;
    return double(t.h.tiles()) * t.w.tiles() * (t.rows * a_row + packing);
}

}  // namespace

Tiles tiles_of(const ConvShape& shape, Product product) {
    Tiles best{};
    const bool forward = product == Product::forward;
    best.h = axis_of(product, shape.h, shape.out_h, shape.r, shape.stride_h, shape.pad_h);
    best.w = axis_of(product, shape.w, shape.out_w, shape.s, shape.stride_w, shape.pad_w);
    best.channels = forward ? shape.c : shape.k;
    best.rows = (forward ? shape.k : shape.c) * best.h.classes * best.w.classes;
    best.flat = shape.r == 1 && shape.s == 1 && shape.stride_h == 1 && shape.stride_w == 1 && shape.pad_h == 0 &&
                shape.pad_w == 0;
    if (best.flat) {
        cut(best, shape, 1, flat_tile);
        return best;
    }
    double least = 0;
    for (const auto& tile : conv_tile_sizes) {
        Tiles t = best;
        cut(t, shape, tile[0], tile[1]);
        const double c = cost(t, shape);
        if (least == 0 || c < least) {
            least = c;
            best = t;
        }
    }
    return best;
}

Tap tap_of(const ConvShape& shape, const Tiles& t, Product product, int r, int s) {
    int phase_h = 0, phase_w = 0, result_class = 0, at_h, at_w;
    if (product == Product::forward) {
        phase_h = r % shape.stride_h, phase_w = s % shape.stride_w;
        at_h = r / shape.stride_h, at_w = s / shape.stride_w;
    } else {
        result_class = (r % shape.stride_h) * shape.stride_w + s % shape.stride_w;
        at_h = t.h.source_pad - r / shape.stride_h, at_w = t.w.source_pad - s / shape.stride_w;
    }
    const int phase = phase_h * t.w.phases + phase_w;
    return {((phase * t.h.extent + at_h) * t.w.extent + at_w) * W, result_class};
}

}  // namespace torchswat::SWAT_ISA
