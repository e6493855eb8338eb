// The choice of tile: the cheapest by a count of loads, the scarcest resource of the inner loop.
#include "conv_tiles.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int large_map = 200;  // positions that repay the sorting of weights by pattern

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int smaller(int a, int b) { return a < b ? a : b; }

// grad_input: the class of results that a tap makes, and the source it reads for them, counted from u.
int class_of(int tap, int stride, int pad) { return ((tap - pad) % stride + stride) % stride; }
int step_of(int tap, int stride, int pad) { return (class_of(tap, stride, pad) + pad - tap) / stride; }

Axis axis_of(Product product, int in, int out, int kernel, int stride, int pad) {
    Axis axis{};
    if (product == Product::forward) {
        axis = {in, stride, smaller(stride, kernel), pad, ceil_div(kernel, stride) - 1, out, 1, out, 0, 0, false};
    } else {
        const int first = step_of(kernel - 1, stride, pad), last = step_of(0, stride, pad);
        axis = {out, 1, 1, -first, last - first, in, stride, ceil_div(in, stride), 0, 0, false};
    }
    return axis;
}

bool is_3x3(const ConvShape& s) {
    const bool adjacent = s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1;
    return s.r == 3 && s.s == 3 && adjacent;
}

// Whether each of the one or two tiles along this axis ends at an edge of the map.
bool trims(const Axis& axis, int pad) {
    return pad == 1 && axis.steps == axis.source_size &&
           (axis.source_size == trimmed_tile || axis.source_size == 2 * trimmed_tile);
}

void trim(Axis& axis) {
    axis.trimmed = true;
    axis.tile = trimmed_tile;
    axis.extent = trimmed_tile + 2 - (axis.tiles() == 1 ? 2 : 1);
}

bool is_tiny(const Axis& axis, int pad) { return pad == 1 && axis.source_size == tiny_map && axis.steps == tiny_map; }

void cut(Axis& axis, int tile) {
    axis.tile = tile;
    axis.extent = tile + axis.reach;
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

Tiles tiles_of(const ConvShape& shape, Product product, int together) {
    const bool forward = product == Product::forward;
    Tiles best{};
    const int height = shape.dilation_h * (shape.r - 1) + 1, width = shape.dilation_w * (shape.s - 1) + 1;
    best.h = axis_of(product, shape.h, shape.out_h, height, shape.stride_h, shape.pad_h);
    best.w = axis_of(product, shape.w, shape.out_w, width, shape.stride_w, shape.pad_w);
    best.channels = ceil_div(forward ? shape.c : shape.k, together);
    best.results = forward ? shape.k : shape.c;
    best.flat = shape.r == 1 && shape.s == 1 && shape.stride_h == 1 && shape.stride_w == 1 && shape.pad_h == 0 &&
                shape.pad_w == 0;
    const bool zeros_around = shape.outside == 0;  // which may be left out
    if (registers == 32 && is_3x3(shape)) {
        if (zeros_around && is_tiny(best.h, shape.pad_h) && is_tiny(best.w, shape.pad_w)) {
            best.tiny = true;
            best.lists = Lists::by_tap;
            best.h.tile = best.h.extent = tiny_map * tiny_map;
            best.w.tile = best.w.extent = tiny_vectors;
            choose_blocks(best);
            return best;
        }
        if (zeros_around && trims(best.h, shape.pad_h) && trims(best.w, shape.pad_w)) {
            best.lists = Lists::by_tap;
        } else if (best.h.steps * best.w.steps >= large_map) {
            best.lists = Lists::by_pattern;
        }
    }
    if (best.lists == Lists::by_tap) {
        trim(best.h);
        trim(best.w);
        choose_blocks(best);
        return best;
    }
    if (best.flat) {
        cut(best.h, 1);
        cut(best.w, flat_tile);
        choose_blocks(best);
        return best;
    }
    double least = 0;
    for (const auto& tile : conv_tile_sizes) {
        Tiles t = best;
        cut(t.h, tile[0]);
        cut(t.w, tile[1]);
        choose_blocks(t);
        const double c = cost(t, shape);
        if (least > 0 && c >= least) continue;
        least = c;
        best = t;
    }
    return best;
}

Tap tap_of(const ConvShape& shape, const Tiles& t, Product product, int r, int s) {
    r *= shape.dilation_h, s *= shape.dilation_w;
    int phase_h = 0, phase_w = 0, result_class = 0, at_h, at_w;
    if (product == Product::forward) {
        phase_h = r % shape.stride_h, phase_w = s % shape.stride_w;
        at_h = r / shape.stride_h, at_w = s / shape.stride_w;
    } else {
        result_class = class_of(r, shape.stride_h, shape.pad_h) * t.w.classes;
        result_class += class_of(s, shape.stride_w, shape.pad_w);
        at_h = step_of(r, shape.stride_h, shape.pad_h) + t.h.source_pad;
        at_w = step_of(s, shape.stride_w, shape.pad_w) + t.w.source_pad;
    }
    if (t.lists == Lists::by_tap) return {0, 0, at_h * 3 + at_w};
    const int line = phase_h * t.h.extent + at_h, vector = (line * t.w.phases + phase_w) * t.w.extent + at_w;
    return {vector * W, result_class, 0};
}

}  // namespace torchswat::SWAT_ISA
