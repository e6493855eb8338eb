// Forward and grad_input of a convolution with sparse weights.
//
//     X [c][h][w][n]                    one group of W samples, one tile of u:
//       |  pack a block of channels
//       v
//     tile [c in block][extent_h][extent_w][W]     at most 36 KB, stays in the first-level cache
//       |  for each row (filter): registers[tile_h][tile_w] += value * tile[offset + position], for each kept weight
//       v
//     Y [k][out_h][out_w][n]            or, while blocks of channels are still to come, partial[row][tile_h][tile_w][W]
//
// For a kept weight: tile_h*tile_w multiply-adds, each with one aligned vector from the cache, one broadcast and
// 6 bytes of list. Two loads a cycle are the limit, so 16 multiply-adds cost 9 cycles where 8 would be the peak.
// For a row and a block: the registers are loaded and stored once more. For a channel of the tile: extent_h*extent_w
// vectors are copied, once for all rows.
// Each result is summed by one thread, in the order of its list: the number of threads changes nothing.
#include "sparse_weights.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#include <iterator>
#include <utility>

namespace torchswat::SWAT_ISA {
namespace {

// A tensor [channels][h][w][n], in floats.
struct Source {
    const float* data;
    int64_t channel, row, column;
};
struct Result {
    float* data;
    int64_t channel, row, column;
};

struct Work {
    const Tiles& tiles;
    SparseWeights weights;
    Source source;
    Result result;
    const float* bias;
};

// One group of samples of one tile.
struct Place {
    int u_h, u_w;
    int64_t sample;
    int lanes;
};

void pack_row(const Work& work, const Place& place, const float* source, int phase_w, float* tile) {
    const Axis& w = work.tiles.w;
    const int first = place.u_w * w.source_stride + phase_w - w.source_pad;
    for (int j = 0; j < w.extent; j++, tile += W) {
        const int index = first + j * w.source_stride;
        const bool inside = source && index >= 0 && index < w.source_size;
        store(tile, inside ? load_first(source + index * work.source.column, place.lanes) : vf{});
    }
}

void pack_block(const Work& work, const Place& place, int first, int last, float* tile) {
    const Axis& h = work.tiles.h;
    const Axis& w = work.tiles.w;
    for (int c = first; c < last; c++) {
        const float* channel = work.source.data + c * work.source.channel + place.sample;
        for (int phase_h = 0; phase_h < h.phases; phase_h++) {
            for (int phase_w = 0; phase_w < w.phases; phase_w++) {
                for (int i = 0; i < h.extent; i++, tile += w.extent * W) {
                    const int index = (place.u_h + i) * h.source_stride + phase_h - h.source_pad;
                    const bool inside = index >= 0 && index < h.source_size;
                    pack_row(work, place, inside ? channel + index * work.source.row : nullptr, phase_w, tile);
                }
            }
        }
    }
}

template <int H, int V> struct Registers {
    vf at[H][V];
};

// The inner loop: one kept weight times one tile.
template <int H, int V>
inline __attribute__((always_inline)) void add(Registers<H, V>& sum, const char* tile, int64_t row_bytes, float value) {
    const vf weight = splat(value);
#pragma GCC unroll 8
    for (int i = 0; i < H; i++) {
        const float* row = reinterpret_cast<const float*>(tile + i * row_bytes);
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) sum.at[i][j] += weight * load(row + j * W);
    }
}

template <int H, int V>
inline __attribute__((always_inline)) void add_all(Registers<H, V>& sum, const char* tile, int64_t row_bytes,
                                                   const float* values, const uint16_t* offsets, int count) {
    int i = 0;
    for (; i + 4 <= count; i += 4) {
        uint64_t four;  // offsets at one load
        std::memcpy(&four, offsets + i, sizeof four);
        add(sum, tile + (four & 0xffff), row_bytes, values[i]);
        add(sum, tile + (four >> 16 & 0xffff), row_bytes, values[i + 1]);
        add(sum, tile + (four >> 32 & 0xffff), row_bytes, values[i + 2]);
        add(sum, tile + (four >> 48), row_bytes, values[i + 3]);
    }
    for (; i < count; i++) add(sum, tile + offsets[i], row_bytes, values[i]);
}

template <int H, int V> void write(const Work& work, const Place& place, int row, const Registers<H, V>& sum) {
    const Axis& h = work.tiles.h;
    const Axis& w = work.tiles.w;
    const int classes = h.classes * w.classes;
    const int result_class = row % classes;
    const int first_h = place.u_h * h.result_stride + result_class / w.classes - h.result_pad;
    const int first_w = place.u_w * w.result_stride + result_class % w.classes - w.result_pad;
    float* channel = work.result.data + row / classes * work.result.channel + place.sample;
#pragma GCC unroll 8
    for (int i = 0; i < H; i++) {
        const int index_h = first_h + i * h.result_stride;
        if (index_h < 0 || index_h >= h.result_size) continue;
        float* line = channel + index_h * work.result.row;
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) {
            const int index_w = first_w + j * w.result_stride;
            if (index_w < 0 || index_w >= w.result_size) continue;
            store_first(line + index_w * work.result.column, sum.at[i][j], place.lanes);
        }
    }
}

template <int H, int V>
void run_tile(const Work& work, const Place& place, float* tile, float* partial) {
    const Tiles& t = work.tiles;
    const int64_t row_bytes = int64_t(t.w.extent) * W * sizeof(float);
    for (int block = 0; block < t.blocks; block++) {
        const int first = block * t.block;
        const int last = first + t.block < t.channels ? first + t.block : t.channels;
        pack_block(work, place, first, last, tile);
        const int32_t* starts = work.weights.starts + int64_t(block) * t.rows;
        for (int row = 0; row < t.rows; row++) {
            float* saved = partial + int64_t(row) * H * V * W;
            Registers<H, V> sum;
            if (block > 0) {
#pragma GCC unroll 32
                for (int i = 0; i < H * V; i++) sum.at[i / V][i % V] = load(saved + i * W);
            } else {
                const vf start = splat(work.bias ? work.bias[row] : 0.0f);
#pragma GCC unroll 32
                for (int i = 0; i < H * V; i++) sum.at[i / V][i % V] = start;
            }
            const int at = starts[row];
            add_all(sum, reinterpret_cast<const char*>(tile), row_bytes, work.weights.values + at,
                    work.weights.offsets + at, starts[row + 1] - at);
            if (block + 1 < t.blocks) {
#pragma GCC unroll 32
                for (int i = 0; i < H * V; i++) store(saved + i * W, sum.at[i / V][i % V]);
            } else {
                write(work, place, row, sum);
            }
        }
    }
}

using TileRunner = void (*)(const Work&, const Place&, float*, float*);

template <int... I> TileRunner runner_of(const Tiles& t, std::integer_sequence<int, I...>) {
    TileRunner found = t.flat ? TileRunner(run_tile<1, flat_tile>) : nullptr;
    ((!t.flat && t.h.tile == conv_tile_sizes[I][0] && t.w.tile == conv_tile_sizes[I][1]
          ? void(found = run_tile<conv_tile_sizes[I][0], conv_tile_sizes[I][1]>)
          : void()),
     ...);
    return found;
}

int64_t tile_floats(const Tiles& t) { return int64_t(t.block) * t.channel_floats; }
int64_t partial_floats(const Tiles& t) { return t.blocks > 1 ? int64_t(t.rows) * t.h.tile * t.w.tile * W : 0; }
int64_t workspace_floats(const Tiles& t) { return tile_floats(t) + partial_floats(t) + 64; }

// All tiles of all samples; neighbouring groups of samples follow each other, they lie in neighbouring cache lines.
void run(const Work& work, int64_t samples, float* workspace, int threads) {
    const Tiles& t = work.tiles;
    const TileRunner run_one = runner_of(t, std::make_integer_sequence<int, std::size(conv_tile_sizes)>());
    const int64_t groups = (samples + W - 1) / W;
    const int64_t all = groups * t.h.tiles() * t.w.tiles();
    int64_t chunk = all / (int64_t(threads) * 8);
    if (chunk > groups) chunk = groups;
    if (chunk < 1) chunk = 1;
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const int thread = omp_get_thread_num();
#else
        const int thread = 0;
#endif
        float* tile = workspace + thread * workspace_floats(t);
        float* partial = tile + tile_floats(t);
#pragma omp for schedule(dynamic, chunk)
        for (int64_t i = 0; i < all; i++) {
            const int64_t sample = i % groups * W;
            const int u_w = int(i / groups % t.w.tiles()) * t.w.tile + t.w.begin;
            const int u_h = int(i / groups / t.w.tiles()) * t.h.tile + t.h.begin;
            const int lanes = samples - sample < W ? int(samples - sample) : W;
            run_one(work, {u_h, u_w, sample, lanes}, tile, partial);
        }
    }
}

// A 1x1 convolution knows no positions: whole vectors along one axis, then what is left of the last vector.
void run_flat(Tiles t, SparseWeights weights, const float* source, float* result, int64_t length, const float* bias,
              float* workspace, int threads) {
    const int vectors = int(length / W);
    if (vectors > 0) {
        t.h.source_size = t.h.result_size = t.h.end = 1;
        t.w.source_size = t.w.result_size = t.w.end = vectors;
        run({t, weights, {source, length, 0, W}, {result, length, 0, W}, bias}, W, workspace, threads);
    }
    const int64_t done = int64_t(vectors) * W;
    if (done < length) {
        t.h.source_size = t.h.result_size = t.h.end = 1;
        t.w.source_size = t.w.result_size = t.w.end = 1;
        run({t, weights, {source + done, length, 0, 0}, {result + done, length, 0, 0}, bias}, length - done, workspace,
            1);
    }
}

void run_product(const ConvShape& s, Product product, SparseWeights weights, const float* source, float* result,
                 const float* bias, float* workspace, int threads) {
    const Tiles t = tiles_of(s, product);
    if (t.flat) return run_flat(t, weights, source, result, s.input_map(), bias, workspace, threads);
    const int64_t n = s.n;
    const Source from{source, t.h.source_size * t.w.source_size * n, t.w.source_size * n, n};
    const Result to{result, t.h.result_size * t.w.result_size * n, t.w.result_size * n, n};
    run({t, weights, from, to, bias}, n, workspace, threads);
}

}  // namespace

int64_t conv_workspace(ConvShape shape, int threads) {
    const int64_t forward = workspace_floats(tiles_of(shape, Product::forward));
    const int64_t grad_input = workspace_floats(tiles_of(shape, Product::grad_input));
    return (forward > grad_input ? forward : grad_input) * threads + W;
}

void conv_forward(ConvShape shape, const float* x, const int32_t* starts, const float* values, const uint16_t* offsets,
                  const float* bias, float* y, float* workspace, int threads) {
    run_product(shape, Product::forward, {starts, values, offsets}, x, y, bias, workspace, threads);
}

void conv_grad_input(ConvShape shape, const float* grad_y, const int32_t* starts, const float* values,
                     const uint16_t* offsets, float* grad_x, float* workspace, int threads) {
    run_product(shape, Product::grad_input, {starts, values, offsets}, grad_y, grad_x, nullptr, workspace, threads);
}

}  // namespace torchswat::SWAT_ISA
