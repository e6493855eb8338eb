// How a product with sparse weights is cut into tiles that fit the registers and the first-level cache.
//
// Both products are the same loop over a *source* (X, or grad_Y) that makes a *result* (Y, or grad_X). Along one
// axis, in coordinates u that count the tile's steps:
//
//                     source index of tap r at u       result index of class a at u       taps of class a
//     forward         u*stride + r - pad               u            (one class, a = 0)    all
//     grad_input      u - r/stride                     u*stride + a - pad                 r % stride == a
//
// so grad_input at stride s is s classes of a convolution of stride 1 that share one source tile. A forward source
// of stride s is stored as `phases` (index % s) one after the other; a step of u is then one vector in every tile:
//
//     tile of a channel = [phase_h][extent_h][phase_w][extent_w] vectors of W samples
//
// On maps of 4 and 8 the zeros around the map would be a third and a sixth of a 3x3 kernel's work. There tiles are
// `trimmed`: the zeros are not stored, and the weights are listed tap by tap, each tap with its own inner loop.
#pragma once
#include "shapes.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {

// Tiles of results that the registers hold, {height, width}. conv_weights.cpp has one inner loop for each.
constexpr int conv_tile_sizes[][2] = {
#if defined(__AVX512F__) || defined(__aarch64__)
    {4, 4}, {4, 7}, {3, 7}, {3, 8}, {4, 6}, {2, 7}, {2, 8},
#else
    {4, 3}, {2, 4}, {2, 5}, {2, 6}, {2, 7}, {3, 4},
#endif
};
constexpr int flat_tile = 8, trimmed_tile = 4, trimmed_kernel = 3;

struct Axis {
    int source_size, source_stride, source_pad, phases;  // index = (u + i)*source_stride + phase - source_pad
    int result_size, result_stride, result_pad, classes; // index = u*result_stride + class - result_pad
    int begin, end;                                      // range of u
    int tile, extent;                                    // steps of u in a tile; with the reach of the taps
    bool trimmed;

    int tiles() const { return (end - begin + tile - 1) / tile; }
    bool at_low(int u) const { return u == begin; }
    bool at_high(int u) const { return u + tile >= end; }
    int first_source(int u) const { return u * source_stride - source_pad + (trimmed && at_low(u)); }
};

struct Tiles {
    Axis h, w;
    int channels, results;    // of the source, of the result
    int block, blocks;        // source channels that share the cache at a time
    int channel_floats;       // of the packed tile of one source channel
    bool flat;                // 1x1: positions and samples are one long axis of vectors
    bool trimmed;

    int classes() const { return h.classes * w.classes; }
    int lists() const { return trimmed ? trimmed_kernel * trimmed_kernel : 1; }  // of a row
    int rows() const { return results * classes(); }
};

enum class Product { forward, grad_input };

Tiles tiles_of(const ConvShape& shape, Product product);

// Where tap (r, s) lies in the tile of a channel (floats), the class of results and the list it belongs to.
struct Tap {
    int offset, result_class, list;
};
Tap tap_of(const ConvShape& shape, const Tiles& tiles, Product product, int r, int s);

}  // namespace torchswat::SWAT_ISA
