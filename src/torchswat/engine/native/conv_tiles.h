// How a product with sparse weights is cut into tiles that fit the registers and the first-level cache.
//
// Both products are the same loop over a *source* (X, or grad_Y) that makes a *result* (Y, or grad_X). Along one
// axis, in coordinates u that count the tile's steps, and with results in `classes` by their index % stride:
//
//                     result at u and class a     taps of class a                 source of tap r at u and class a
//     forward         u   (one class, a = 0)      all                             u*stride + r - pad
//     grad_input      u*stride + a                (r - pad - a) % stride == 0     u + (a + pad - r)/stride
//
// so grad_input at stride s is s classes of a convolution of stride 1 that share one source tile. A forward source
// of stride s is stored as `phases` (index % s) one after the other; a step of u is then one vector in every tile:
//
//     tile of a channel = [phase_h][extent_h][phase_w][extent_w] vectors of W samples
//
// Some refinements for the 3x3 kernel of stride 1:
// - On maps of 4 and 8 the zeros around the map would be a third and a sixth of the work. There tiles are *trimmed*:
//   the zeros are not stored, and the weights are listed tap by tap, each tap with its own inner loop. On *tiny* maps
//   of 2x2 they would be more than half; there a tile is the whole map times four vectors of samples, which take the
//   place of the axis w.
// - On large maps the weights of a row of the kernel are listed together, by which of the three are kept (7
//   *patterns*, each with its own inner loop): they share the vectors that they load.
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
// What a block of channels may fill of the first-level cache, which is of 48 KB where vectors are of 64 bytes. Between 36
// and 44 KB nothing was faster for all shapes on an AMD Zen 5.
constexpr int cache_bytes = (W == 16 ? 44 : 36) * 1024;
constexpr int cache_line = 16;  // floats
constexpr int flat_tile = 8, trimmed_tile = 4;
constexpr int tiny_map = 2, tiny_vectors = 4;  // of samples

enum class Lists { one, by_tap, by_pattern };  // of the weights of a row of results
constexpr int taps_3x3 = 9, patterns = 8;  // pattern p keeps weight i of three where bit i of p is set

struct Axis {
    int source_size, source_stride, phases;  // of index (u + i)*source_stride + phase - source_pad
    int source_pad, reach;                   // how far the taps go before and after u, together
    int result_size, classes;                // of index u*classes + class
    int steps;                               // of u
    int tile, extent;                        // steps of u in a tile; with the reach
    bool trimmed;

    int tiles() const { return (steps + tile - 1) / tile; }
    bool at_low(int u) const { return u == 0; }
    bool at_high(int u) const { return u + tile >= steps; }
    int first_source(int u) const { return u * source_stride - source_pad + (trimmed && at_low(u)); }
};

struct Tiles {
    Axis h, w;
    int channels, results;    // of the source (pairs of them count as one), of the result
    int block, blocks;        // source channels that share the cache at a time
    int channel_floats;       // of the packed tile of one source channel
    bool flat;                // 1x1: positions and samples are one long axis of vectors
    bool tiny;                // 3x3 on 2x2: positions are the axis h, vectors of samples the axis w
    Lists lists;

    int classes() const { return h.classes * w.classes; }
    int starts() const { return lists == Lists::by_tap ? taps_3x3 + 1 : lists == Lists::by_pattern ? patterns : 2; }
    int rows() const { return results * classes(); }
    // Of the packed tiles of a block, and of the results of all rows; each for one group of samples. The tiles of
    // all groups are written together: a multiple of 4 KB apart they would share sets of the first-level cache.
    int64_t block_floats() const {
        constexpr int64_t page = 1024, apart = 13 * cache_line;
        return (int64_t(block) * channel_floats / page + 1) * page + apart;
    }
    int64_t sums_floats() const { return int64_t(rows()) * h.tile * w.tile * W; }
};

enum class Product { forward, grad_input };

// `together`: source channels whose entries share a lane.
Tiles tiles_of(const ConvShape& shape, Product product, int together = 1);

// Where tap (r, s) lies in the tile of a channel (floats), the class of results and the list it belongs to.
struct Tap {
    int offset, result_class, list;
};
Tap tap_of(const ConvShape& shape, const Tiles& tiles, Product product, int r, int s);

}  // namespace torchswat::SWAT_ISA
