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
#include "stream.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#include <iterator>
#include <utility>

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t partial_bytes = 640 << 10;

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
    bool past_caches;  // the result is large and its vectors are aligned
};

// One tile and the samples [first, last) that a thread works through with it.
struct Place {
    int u_h, u_w;
    int64_t first, last;

    int groups() const { return int((last - first + W - 1) / W); }
};

// The lines of a block of channels of the tile, one after the other, and the row of the source each is copied from.
struct Lines {
    const Work& work;
    Place place;
    int channel, last, phase = 0, i = 0;

    bool done() const { return channel >= last; }
    const float* source() const {  // at column 0; null for a row outside of the map
        const Axis& h = work.tiles.h;
        const int row = h.first_source(place.u_h) + i * h.source_stride + phase;
        if (row < 0 || row >= h.source_size) return nullptr;
        return work.source.data + channel * work.source.channel + row * work.source.row;
    }
    int column() const { return work.tiles.w.first_source(place.u_w); }
    void next() {
        if (++i < work.tiles.h.extent) return;
        i = 0;
        if (++phase < work.tiles.h.phases) return;
        phase = 0;
        channel++;
    }
};

Lines lines_of(const Work& work, const Place& place, int block) {
    const int first = block * work.tiles.block, last = first + work.tiles.block;
    return {work, place, first, last < work.tiles.channels ? last : work.tiles.channels};
}

void pack(Lines lines, int64_t sample, int lanes, float* tile) {
    const Axis& w = lines.work.tiles.w;
    const int64_t step = lines.work.source.column;
    for (; !lines.done(); lines.next()) {
        const float* source = lines.source();
        for (int phase = 0; phase < w.phases; phase++) {
            int column = lines.column() + phase;
            for (int j = 0; j < w.extent; j++, tile += W, column += w.source_stride) {
                const bool inside = source && column >= 0 && column < w.source_size;
                store(tile, inside ? load_first(source + column * step + sample, lanes) : vf{});
            }
        }
    }
}

// Asks for the lines of the next block while this one is worked on, a few with each row of the result, and all
// samples of a position together: they are neighbours in memory.
struct Prefetch {
    Lines lines;
    int each, columns, column = 0;

    Prefetch(const Lines& next, int groups) : lines(next) {
        const Tiles& t = next.work.tiles;
        columns = (t.w.extent - 1) * t.w.source_stride + t.w.phases;
        const int all = (next.last - next.channel) * t.h.phases * t.h.extent * columns;
        each = all / (t.rows() * groups) + 1;
    }
    void some() {
        for (int i = 0; i < each && !lines.done(); i++) {
            if (const float* source = lines.source()) {
                source += (lines.column() + column) * lines.work.source.column;
                for (int64_t n = lines.place.first; n < lines.place.last; n += 16) __builtin_prefetch(source + n, 0, 2);
            }
            if (++column < columns) continue;
            column = 0;
            lines.next();
        }
    }
};

template <int H, int V> struct Registers {
    vf at[H][V];

    inline __attribute__((always_inline)) void fill(vf value) {
#pragma GCC unroll 32
        for (int i = 0; i < H * V; i++) at[i / V][i % V] = value;
    }
    inline __attribute__((always_inline)) void load_from(const float* p) {
#pragma GCC unroll 32
        for (int i = 0; i < H * V; i++) at[i / V][i % V] = load(p + i * W);
    }
    inline __attribute__((always_inline)) void store_to(float* p) const {
#pragma GCC unroll 32
        for (int i = 0; i < H * V; i++) store(p + i * W, at[i / V][i % V]);
    }
};

// The inner loop: one kept weight times one tile.
template <int H, int V>
inline __attribute__((always_inline)) void add(Registers<H, V>& sum, const char* tile, int64_t row_bytes, float value) {
    const vf weight = splat(value);
#pragma GCC unroll 8
    for (int i = 0; i < H; i++, tile += row_bytes) {
        asm("" : "+r"(tile));  // one register a row: addresses of base + index are slower
        const float* row = reinterpret_cast<const float*>(tile);
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) sum.at[i][j] += weight * load(row + j * W);
    }
}

// Any kernel: one list for a row of the result.
template <int H, int V> struct Plain {
    static constexpr int height = H, width = V;

    static inline __attribute__((always_inline)) void add_row(Registers<H, V>& sum, const Tiles& t, const float* floats,
                                                              const SparseWeights& weights, const int32_t* start) {
        const char* tile = reinterpret_cast<const char*>(floats);
        const int64_t row_bytes = int64_t(t.w.phases) * t.w.extent * W * sizeof(float);
        const float* values = weights.values + start[0];
        const uint16_t* offsets = weights.offsets + start[0];
        const int count = start[1] - start[0];
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
};

enum Edges { low = 1, high = 2 };  // that a tile lies at, along one axis

// A 3x3 kernel on a tile at edges of the map: one list a tap, which leaves out the positions it would read zeros for.
template <int EH, int EV> struct Trimmed {
    static constexpr int height = trimmed_tile, width = trimmed_tile, kernel = trimmed_kernel;
    using Sum = Registers<height, width>;

    template <int R, int S>
    static inline __attribute__((always_inline)) void add_tap(Sum& sum, const char* tile, const SparseWeights& weights,
                                                              const int32_t* start) {
        constexpr int extent = trimmed_tile + 2 - (EV & low ? 1 : 0) - (EV & high ? 1 : 0);
        constexpr int i0 = EH & low && R == 0, i1 = height - (EH & high && R == 2);
        constexpr int j0 = EV & low && S == 0, j1 = width - (EV & high && S == 2);
        constexpr int shift = (R - (EH & low ? 1 : 0)) * extent + S - (EV & low ? 1 : 0);
        for (int at = start[R * kernel + S], end = start[R * kernel + S + 1]; at < end; at++) {
            const vf weight = splat(weights.values[at]);
            const char* source = tile + weights.offsets[at];
            asm("" : "+r"(source));
            const float* vectors = reinterpret_cast<const float*>(source);
#pragma GCC unroll 4
            for (int i = i0; i < i1; i++) {
#pragma GCC unroll 4
                for (int j = j0; j < j1; j++) sum.at[i][j] += weight * load(vectors + (i * extent + j + shift) * W);
            }
        }
    }

    static inline __attribute__((always_inline)) void add_row(Sum& sum, const Tiles&, const float* floats,
                                                              const SparseWeights& weights, const int32_t* start) {
        const char* tile = reinterpret_cast<const char*>(floats);
        add_tap<0, 0>(sum, tile, weights, start);
        add_tap<0, 1>(sum, tile, weights, start);
        add_tap<0, 2>(sum, tile, weights, start);
        add_tap<1, 0>(sum, tile, weights, start);
        add_tap<1, 1>(sum, tile, weights, start);
        add_tap<1, 2>(sum, tile, weights, start);
        add_tap<2, 0>(sum, tile, weights, start);
        add_tap<2, 1>(sum, tile, weights, start);
        add_tap<2, 2>(sum, tile, weights, start);
    }
};

// Where a class of results begins, and whether the tile lies inside of the map.
struct Target {
    float* data;
    int h, w, lanes;
    bool whole;
};

Target target_of(const Work& work, const Place& place, int64_t sample, int lanes, int result_class) {
    const Axis& h = work.tiles.h;
    const Axis& w = work.tiles.w;
    const int first_h = place.u_h * h.result_stride + result_class / w.classes - h.result_pad;
    const int first_w = place.u_w * w.result_stride + result_class % w.classes - w.result_pad;
    const bool whole = first_h >= 0 && first_h + (h.tile - 1) * h.result_stride < h.result_size && first_w >= 0 &&
                       first_w + (w.tile - 1) * w.result_stride < w.result_size && lanes == W;
    float* data = work.result.data + first_h * work.result.row + first_w * work.result.column + sample;
    return {data, first_h, first_w, lanes, whole};
}

template <int H, int V>
void write(const Work& work, const Target& target, int channel, const Registers<H, V>& sum) {
    const Axis& h = work.tiles.h;
    const Axis& w = work.tiles.w;
    const int64_t row = h.result_stride * work.result.row, column = w.result_stride * work.result.column;
    float* data = target.data + channel * work.result.channel;
    const bool past_caches = work.past_caches;
#pragma GCC unroll 8
    for (int i = 0; i < H; i++, data += row) {
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) {
            if (target.whole && past_caches) {
                put<true>(data + j * column, sum.at[i][j]);
            } else if (target.whole) {
                storeu(data + j * column, sum.at[i][j]);
            } else {
                const int at_h = target.h + i * h.result_stride, at_w = target.w + j * w.result_stride;
                if (at_h < 0 || at_h >= h.result_size || at_w < 0 || at_w >= w.result_size) continue;
                store_first(data + j * column, sum.at[i][j], target.lanes);
            }
        }
    }
}

// One block of channels, packed for one group of samples, to all rows of the result.
template <class Loop>
void add_block(const Work& work, const Place& place, int block, int group, const float* tile, float* partial,
               Prefetch& prefetch) {
    constexpr int H = Loop::height, V = Loop::width;
    const Tiles& t = work.tiles;
    const bool first = block == 0, last = block + 1 == t.blocks;
    const int64_t sample = place.first + group * W;
    const int lanes = place.last - sample < W ? int(place.last - sample) : W;
    const int classes = t.classes(), lists = t.lists();
    const int32_t* start = work.weights.starts + block * block_starts(t);
    for (int channel = 0; channel < t.results; channel++) {
        for (int result_class = 0; result_class < classes; result_class++, start += lists, partial += H * V * W) {
            prefetch.some();
            Registers<H, V> sum;
            if (first) {
                sum.fill(splat(work.bias ? work.bias[channel] : 0.0f));
            } else {
                sum.load_from(partial);
            }
            Loop::add_row(sum, t, tile, work.weights, start);
            if (last) {
                write(work, target_of(work, place, sample, lanes, result_class), channel, sum);
            } else {
                sum.store_to(partial);
            }
        }
    }
}

template <class Loop>
void run_tile(const Work& work, const Place& place, const Place& following, float* tile, float* partial) {
    const Tiles& t = work.tiles;
    const int groups = place.groups();
    for (int block = 0; block < t.blocks; block++) {
        const bool last = block + 1 == t.blocks;
        Prefetch prefetch(last ? lines_of(work, following, 0) : lines_of(work, place, block + 1), groups);
        for (int group = 0; group < groups; group++) {
            const int64_t sample = place.first + group * W;
            pack(lines_of(work, place, block), sample, place.last - sample < W ? int(place.last - sample) : W, tile);
            float* saved = partial + int64_t(group) * t.rows() * Loop::height * Loop::width * W;
            add_block<Loop>(work, place, block, group, tile, saved, prefetch);
        }
    }
}

using TileRunner = void (*)(const Work&, const Place&, const Place&, float*, float*);

template <int EH> TileRunner trimmed_runner(int edges_w) {
    return edges_w == low    ? run_tile<Trimmed<EH, low>>
           : edges_w == high ? run_tile<Trimmed<EH, high>>
                             : run_tile<Trimmed<EH, low | high>>;
}

void run_trimmed(const Work& work, const Place& place, const Place& following, float* tile, float* partial) {
    const Axis &h = work.tiles.h, &w = work.tiles.w;
    const int edges_h = h.at_low(place.u_h) * low + h.at_high(place.u_h) * high;
    const int edges_w = w.at_low(place.u_w) * low + w.at_high(place.u_w) * high;
    const TileRunner runner = edges_h == low    ? trimmed_runner<low>(edges_w)
                              : edges_h == high ? trimmed_runner<high>(edges_w)
                                                : trimmed_runner<low | high>(edges_w);
    runner(work, place, following, tile, partial);
}

template <int... I> TileRunner runner_of(const Tiles& t, std::integer_sequence<int, I...>) {
    if (t.flat) return run_tile<Plain<1, flat_tile>>;
    if (t.trimmed) return run_trimmed;
    TileRunner found = nullptr;
    ((t.h.tile == conv_tile_sizes[I][0] && t.w.tile == conv_tile_sizes[I][1]
          ? void(found = run_tile<Plain<conv_tile_sizes[I][0], conv_tile_sizes[I][1]>>)
          : void()),
     ...);
    return found;
}

// How many groups of samples a thread takes together: more make longer reads, but their partial sums must stay in
// the second-level cache.
int groups_together(const Tiles& t) {
    const int64_t bytes = int64_t(t.rows()) * t.h.tile * t.w.tile * sizeof(vf);
    const int64_t most = partial_bytes / bytes;
    return most < 1 ? 1 : most > 8 ? 8 : int(most);
}

int64_t tile_floats(const Tiles& t) { return int64_t(t.block) * t.channel_floats; }
int64_t partial_floats(const Tiles& t) {
    return t.blocks == 1 ? 0 : int64_t(groups_together(t)) * t.rows() * t.h.tile * t.w.tile * W;
}
int64_t workspace_floats(const Tiles& t) { return tile_floats(t) + partial_floats(t) + 64; }

// The i-th piece of work.
Place place_of(const Tiles& t, int64_t samples, int64_t together, int64_t i) {
    const int64_t parts = (samples + together - 1) / together, first = i % parts * together, tile = i / parts;
    const int u_w = int(tile % t.w.tiles()) * t.w.tile + t.w.begin;
    const int u_h = int(tile / t.w.tiles()) * t.h.tile + t.h.begin;
    return {u_h, u_w, first, samples - first < together ? samples : first + together};
}

void run(Work work, int64_t samples, float* workspace, int threads) {
    const Tiles& t = work.tiles;
    const TileRunner run_one = runner_of(t, std::make_integer_sequence<int, std::size(conv_tile_sizes)>());
    const int64_t together = groups_together(t) * W;
    const int64_t pieces = (samples + together - 1) / together * t.h.tiles() * t.w.tiles();
    const int64_t fair = pieces / (8 * int64_t(threads)), chunk = fair < 1 ? 1 : fair;
    work.past_caches = work.result.channel % W == 0 &&
                       worth_streaming(work.result.data, work.result.channel * t.results, work.result.column);
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
        for (int64_t i = 0; i < pieces; i++) {
            run_one(work, place_of(t, samples, together, i), place_of(t, samples, together, i + 1), tile, partial);
        }
        settle<true>();
    }
}

// A 1x1 convolution knows no positions: whole vectors along one axis, then what is left of the last vector.
void run_flat(Tiles t, SparseWeights weights, const float* source, float* result, int64_t length, const float* bias,
              float* workspace, int threads) {
    const int vectors = int(length / W);
    if (vectors > 0) {
        t.h.source_size = t.h.result_size = t.h.end = 1;
        t.w.source_size = t.w.result_size = t.w.end = vectors;
        run({t, weights, {source, length, 0, W}, {result, length, 0, W}, bias, false}, W, workspace, threads);
    }
    const int64_t done = int64_t(vectors) * W;
    if (done < length) {
        t.h.source_size = t.h.result_size = t.h.end = 1;
        t.w.source_size = t.w.result_size = t.w.end = 1;
        run({t, weights, {source + done, length, 0, 0}, {result + done, length, 0, 0}, bias, false}, length - done, workspace,
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
    run({t, weights, from, to, bias, false}, n, workspace, threads);
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
