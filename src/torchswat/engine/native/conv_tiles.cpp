// The choice of tile: the cheapest by a count of loads, the scarcest resource of the inner loop.
#include "conv_tiles.h"

namespace torchswat::SWAT_ISA {
namespace {

#ifndef CACHE
#define CACHE 36
#endif
constexpr int cache_bytes = CACHE * 1024;  // what a block of channels may fill of the first-level cache

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int smaller(int a, int b) { return a < b ? a : b; }

Axis axis_of(Product product, int in, int out, int kernel, int stride, int pad) {
    if (product == Product::forward) {
        return {in, stride, pad, smaller(stride, kernel), out, 1, 0, 1, 0, out, 0, 0, false};
    }
    const int reach = ceil_div(kernel, stride) - 1;
    return {out, 1, reach, 1, in, stride, pad, stride, pad / stride, ceil_div(in + pad, stride), 0, 0, false};
}

// Whether a trimmed tile knows this axis: each of its one or two tiles ends at an edge of the map.
bool trims(const Axis& axis, int kernel, int stride, int pad) {
    return registers == 32 && kernel == trimmed_kernel && stride == 1 && pad == 1 &&
           (axis.source_size == trimmed_tile || axis.source_size == 2 * trimmed_tile);
}

void trim(Axis& axis) {
    axis.trimmed = true;
    axis.tile = trimmed_tile;
    axis.extent = trimmed_tile + 2 - (axis.tiles() == 1 ? 2 : 1);
}

void cut(Axis& axis, int tile, int kernel, int stride) {
    axis.tile = tile;
    axis.extent = tile + ceil_div(kernel, stride) - 1;
}

void choose_blocks(Tiles& t) {
    t.channel_floats = t.h.phases * t.h.extent * t.w.phases * t.w.extent * W;
    const int most = cache_bytes / (t.channel_floats * int(sizeof(float)));
    t.blocks = ceil_div(t.channels, most < 1 ? 1 : most);
    t.block = ceil_div(t.channels, t.blocks);
    t.blocks = ceil_div(t.channels, t.block);
}

// Loads and stores of vectors for the whole product and one group of samples, at a density of 0.2.
double cost(const Tiles& t, const ConvShape& shape) {
    const double positions = t.h.tile * t.w.tile;
    const double kept = 0.2 * t.channels * shape.r * shape.s / t.classes();
    const double a_row = kept * (positions + 1.5) + t.blocks * (2 * positions + 16);
    const double packing = 4.0 * t.channels * t.channel_floats / W;
    return double(t.h.tiles()) * t.w.tiles() * (t.rows() * a_row + packing);
}

}  // namespace

Tiles tiles_of(const ConvShape& shape, Product product) {
    const bool forward = product == Product::forward;
    Tiles best{};
    best.h = axis_of(product, shape.h, shape.out_h, shape.r, shape.stride_h, shape.pad_h);
    best.w = axis_of(product, shape.w, shape.out_w, shape.s, shape.stride_w, shape.pad_w);
    best.channels = forward ? shape.c : shape.k;
    best.results = forward ? shape.k : shape.c;
    best.flat = shape.r == 1 && shape.s == 1 && shape.stride_h == 1 && shape.stride_w == 1 && shape.pad_h == 0 &&
                shape.pad_w == 0;
    best.trimmed = trims(best.h, shape.r, shape.stride_h, shape.pad_h) &&
                   trims(best.w, shape.s, shape.stride_w, shape.pad_w);
    if (best.trimmed) {
        trim(best.h);
        trim(best.w);
        choose_blocks(best);
        return best;
    }
    if (best.flat) {
        cut(best.h, 1, 1, 1);
        cut(best.w, flat_tile, 1, 1);
        choose_blocks(best);
        return best;
    }
    double least = 0;
    for (const auto& tile : conv_tile_sizes) {
        Tiles t = best;
        cut(t.h, tile[0], shape.r, shape.stride_h);
        cut(t.w, tile[1], shape.s, shape.stride_w);
        choose_blocks(t);
        const double c = cost(t, shape);
        if (least > 0 && c >= least) continue;
        least = c;
        best = t;
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
    if (t.trimmed) return {0, 0, at_h * trimmed_kernel + at_w};
    const int line = phase_h * t.h.extent + at_h, vector = (line * t.w.phases + phase_w) * t.w.extent + at_w;
    return {vector * W, result_class, 0};
}

}  // namespace torchswat::SWAT_ISA
