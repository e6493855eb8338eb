// Forward and grad_input of a convolution with sparse weights.
//
//     X [c][h][w][n]     a place: one tile of u, a few groups of W samples
//       |  pack a block of channels, while the block before is worked on
//       v
//     tile [c in block][extent_h][extent_w][W] of each group      at most 44 KB: stays in the first-level cache
//       |  for each row (filter): registers[tile_h][tile_w] += weight * tile[offset + position]   (conv_loops.h)
//       v
//     Y [k][out_h][out_w][n]     or, while blocks are still to come, partial[row][tile_h][tile_w][W] of each group
//
// For a kept weight: tile_h*tile_w multiply-adds on vectors of the first-level cache, and 6 bytes of list.
// For a row and a block: the registers are loaded from and stored to `partial`, in the second-level cache (1 MB).
// For a block: its tiles are copied once for all rows; with the edges that tiles share, X is read
// extent_h*extent_w/(tile_h*tile_w) times in all (2.25 for a 3x3 kernel on tiles of 4x4). Y is written once, past the
// caches where it is large.
// Each result is summed by one thread, in the order of its list: the number of threads changes nothing.
#include "conv_loops.h"
#include "stream.h"

#include <iterator>
#include <utility>

namespace torchswat::SWAT_ISA {
namespace {

constexpr int lines_ahead = 64;               // that are asked for before they are copied
constexpr int fetched = 2 * cache_line;       // floats that arrive when one of them is asked for
constexpr int64_t partial_bytes = 1 << 20;    // that may be taken of the second-level cache
constexpr int64_t streamed_floats = 1 << 19;  // a larger result goes past the caches

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
    const float* residual;  // laid out as the result, added before the ReLU; or null
    bool relu;
    bool past_caches;  // the result is large and its vectors are aligned
};

// One tile and the samples [first, last) that a thread works through with it.
struct Place {
    int u_h, u_w;
    int64_t first, last;

    int groups() const { return int((last - first + W - 1) / W); }
};

// Where a vector of the tile of a channel comes from and goes to, in floats from the beginning of the channel.
struct Position {
    int64_t source;  // or outside
    int64_t to;
};
constexpr int64_t outside = -1;  // of the map, where there are zeros

// Packs the tiles of one block of channels after the other, for all groups of samples of a place: a position at a
// time, whose samples are neighbours in memory. Done a little with each row of the result of the block before, so that
// the multiply-adds hide the way from memory; the lines are asked for some positions ahead.
class Packer {
    const Work& work;
    Position* positions;  // of a channel
    int count = 0;
    int64_t first = 0, last = 0;  // samples
    const float *channel = nullptr, *channel_ahead = nullptr;
    int at = 0, ahead = 0;
    float* to = nullptr;
    int64_t all = 0, left = 0, shares = 1, credit = 0;  // positions of the block

    void list_positions(const Place& place) {
        const Axis &h = work.tiles.h, &w = work.tiles.w;
        count = 0;
        for (int line = 0; line < h.extent * h.phases; line++) {
            const int at_h = h.first_source(place.u_h) + line % h.extent * h.source_stride + line / h.extent;
            for (int i = 0; i < w.extent * w.phases; i++) {
                const int at_w = w.first_source(place.u_w) + i % w.extent * w.source_stride + i / w.extent;
                const bool inside = at_h >= 0 && at_h < h.source_size && at_w >= 0 && at_w < w.source_size;
                positions[count] = {inside ? at_h * work.source.row + at_w * work.source.column : outside, count * W};
                count++;
            }
        }
    }
    void fetch() {
        const int64_t source = positions[ahead].source;
        if (source != outside) {
            const float *from = channel_ahead + source + first, *end = channel_ahead + source + last;
            for (; from < end; from += fetched) __builtin_prefetch(from);
        }
        if (++ahead == count) {
            ahead = 0;
            channel_ahead += work.source.channel;
        }
    }
    void copy() {
        const Position position = positions[at];
        const int64_t group_floats = work.tiles.block_floats();
        float* group = to + position.to;
        if (position.source == outside) {
            for (int64_t n = first; n < last; n += W, group += group_floats) store(group, vf{});
        } else {
            const float *source = channel + position.source + first, *end = channel + position.source + last;
            for (; source + W <= end; source += W, group += group_floats) store(group, loadu(source));
            if (source < end) store(group, load_first(source, int(end - source)));
        }
        if (++at == count) {
            at = 0;
            channel += work.source.channel;
            to += work.tiles.channel_floats;
        }
    }
    void copy(int64_t these) {
        left -= these;
        for (; these > 0; these--) {
            fetch();
            copy();
        }
    }

  public:
    Packer(const Work& work, float* memory) : work(work), positions(reinterpret_cast<Position*>(memory)) {}

    // The blocks of a place follow each other.
    void begin(const Place& place, int block, float* tiles) {
        const Tiles& t = work.tiles;
        if (block == 0) {
            list_positions(place);
            first = place.first, last = place.last;
            channel = channel_ahead = work.source.data;
            at = ahead = 0;
            for (int i = 0; i < lines_ahead; i += place.groups()) fetch();
        }
        to = tiles;
        all = left = int64_t(block + 1 < t.blocks ? t.block : t.channels - block * t.block) * count;
        shares = int64_t(t.rows()) * place.groups();
        credit = 0;
    }
    void pack_some() {
        int64_t these = 0;
        for (credit += all; credit >= shares; credit -= shares) these++;
        copy(these < left ? these : left);
    }
    void pack_remaining() { copy(left); }
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
    const int first_h = place.u_h * h.classes + result_class / w.classes;
    const int first_w = place.u_w * w.classes + result_class % w.classes;
    const bool whole = first_h + (h.tile - 1) * h.classes < h.result_size &&
                       first_w + (w.tile - 1) * w.classes < w.result_size && lanes == W;
    float* data = work.result.data + first_h * work.result.row + first_w * work.result.column + sample;
    return {data, first_h, first_w, lanes, whole};
}

inline vf positive(vf x) { return x > vf{} ? x : (x != x ? x : vf{}); }  // a NaN stays

// A tile that is cut off by the edge of the map, or has less than W samples.
template <int H, int V>
__attribute__((noinline)) void write_part(const Work& work, const Target& target, int channel, const float* sum) {
    const Axis& h = work.tiles.h;
    const Axis& w = work.tiles.w;
    float* data = target.data + channel * work.result.channel;
    for (int i = 0; i < H; i++) {
        for (int j = 0; j < V; j++, sum += W) {
            const int at_h = target.h + i * h.classes, at_w = target.w + j * w.classes;
            if (at_h >= h.result_size || at_w >= w.result_size) continue;
            const int64_t to = i * h.classes * work.result.row + j * w.classes * work.result.column;
            vf x = load(sum);
            if (work.residual) x += load_first(work.residual + (data + to - work.result.data), target.lanes);
            store_first(data + to, work.relu ? positive(x) : x, target.lanes);
        }
    }
}

template <bool past_caches, int H, int V>
SWAT_INLINE void write_whole(float* data, int64_t row, int64_t column,
                                                       const Registers<H, V>& sum) {
#pragma GCC unroll 8
    for (int i = 0; i < H; i++, data += row) {
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) put<past_caches>(data + j * column, sum.at[i][j]);
    }
}

// What follows the convolution, on a whole tile: the residual and the ReLU.
template <int H, int V>
SWAT_INLINE void finish(const Work& work, int64_t to, int64_t row, int64_t column, Registers<H, V>& sum) {
    if (work.residual) {
        const float* from = work.residual + to;
#pragma GCC unroll 8
        for (int i = 0; i < H; i++, from += row) {
#pragma GCC unroll 16
            for (int j = 0; j < V; j++) sum.at[i][j] += loadu(from + j * column);
        }
    }
    if (work.relu) {
#pragma GCC unroll 32
        for (int i = 0; i < H * V; i++) sum.at[i / V][i % V] = positive(sum.at[i / V][i % V]);
    }
}

template <int H, int V>
SWAT_INLINE void write(const Work& work, const Target& target, int channel, float* spare, Registers<H, V>& sum) {
    if (!target.whole) {
        sum.store_to(spare);
        return write_part<H, V>(work, target, channel, spare);
    }
    const int64_t row = work.tiles.h.classes * work.result.row;
    const int64_t column = work.tiles.w.classes * work.result.column;
    float* data = target.data + channel * work.result.channel;
    finish(work, data - work.result.data, row, column, sum);
    if (work.past_caches) {
        write_whole<true>(data, row, column, sum);
    } else {
        write_whole<false>(data, row, column, sum);
    }
}

// One block of channels, packed for one group of samples, to all rows of the result.
template <class Loop>
void add_block(const Work& work, const Place& place, int block, int group, const float* tile, float* partial,
               Packer* next) {
    constexpr int H = Loop::height, V = Loop::width;
    const Tiles& t = work.tiles;
    const bool first = block == 0, last = block + 1 == t.blocks;
    const int64_t sample = place.first + group * W;
    const int lanes = place.last - sample < W ? int(place.last - sample) : W;
    const int classes = t.classes(), starts = t.starts();
    const int32_t* start = work.weights.starts + block * block_starts(t);
    for (int channel = 0; channel < t.results; channel++) {
        for (int result_class = 0; result_class < classes; result_class++, start += starts, partial += H * V * W) {
            if (next) next->pack_some();
            Registers<H, V> sum;
            if (first) {
                sum.fill(splat(work.bias ? work.bias[channel] : 0.0f));
            } else {
                sum.load_from(partial);
            }
            Loop::add_row(sum, t, tile, work.weights, start);
            if (last) {
                write(work, target_of(work, place, sample, lanes, result_class), channel, partial, sum);
            } else {
                sum.store_to(partial);
            }
        }
    }
}

// What a thread works with: the packed tiles of this block and of the next, and the sums of all rows so far.
struct ThreadWorkspace {
    float *tiles, *next_tiles, *partial;
    Packer packer;
};

// One place; its first block is packed already, and that of the following place, if there is one, will be.
template <class Loop>
void run_tile(const Work& work, const Place& place, const Place* following, ThreadWorkspace& workspace) {
    const Tiles& t = work.tiles;
    for (int block = 0; block < t.blocks; block++) {
        const bool last = block + 1 == t.blocks;
        Packer* next = last && !following ? nullptr : &workspace.packer;
        if (next) next->begin(last ? *following : place, last ? 0 : block + 1, workspace.next_tiles);
        for (int group = 0; group < place.groups(); group++) {
            add_block<Loop>(work, place, block, group, workspace.tiles + group * t.block_floats(),
                            workspace.partial + group * t.sums_floats(), next);
        }
        if (next) next->pack_remaining();
        std::swap(workspace.tiles, workspace.next_tiles);
    }
}

using TileRunner = void (*)(const Work&, const Place&, const Place*, ThreadWorkspace&);

template <int EH> TileRunner trimmed_runner(int edges_w) {
    return edges_w == low    ? run_tile<Trimmed<EH, low>>
           : edges_w == high ? run_tile<Trimmed<EH, high>>
                             : run_tile<Trimmed<EH, low | high>>;
}

void run_trimmed(const Work& work, const Place& place, const Place* following, ThreadWorkspace& workspace) {
    const Axis &h = work.tiles.h, &w = work.tiles.w;
    const int edges_h = h.at_low(place.u_h) * low + h.at_high(place.u_h) * high;
    const int edges_w = w.at_low(place.u_w) * low + w.at_high(place.u_w) * high;
    const TileRunner runner = edges_h == low    ? trimmed_runner<low>(edges_w)
                              : edges_h == high ? trimmed_runner<high>(edges_w)
                                                : trimmed_runner<low | high>(edges_w);
    runner(work, place, following, workspace);
}

template <int H, int V> TileRunner untrimmed_runner(Lists lists) {
    return lists == Lists::by_pattern ? run_tile<Patterned<H, V>> : run_tile<Plain<H, V>>;
}

template <int... I> TileRunner runner_of(const Tiles& t, std::integer_sequence<int, I...>) {
    if (t.flat) return run_tile<Plain<1, flat_tile>>;
    if (t.tiny) return run_tile<Tiny>;
    if (t.lists == Lists::by_tap) return run_trimmed;
    TileRunner found = nullptr;
    ((t.h.tile == conv_tile_sizes[I][0] && t.w.tile == conv_tile_sizes[I][1]
          ? void(found = untrimmed_runner<conv_tile_sizes[I][0], conv_tile_sizes[I][1]>(t.lists))
          : void()),
     ...);
    return found;
}

// How many groups of samples make a place: more make longer reads, but fewer partial sums fit the cache.
int groups_together(const Tiles& t) {
    const int64_t most = partial_bytes / (t.sums_floats() * int64_t(sizeof(float)));
    return most < 1 ? 1 : most > 8 ? 8 : int(most);
}

int64_t tiles_floats(const Tiles& t) { return groups_together(t) * t.block_floats(); }
int64_t positions_floats(const Tiles& t) {
    return t.channel_floats / W * int64_t(sizeof(Position) / sizeof(float));
}
int64_t workspace_floats(const Tiles& t) {
    const int64_t floats = 2 * tiles_floats(t) + groups_together(t) * t.sums_floats() + positions_floats(t);
    return (floats + cache_line - 1) / cache_line * cache_line;
}

// The i-th place. Its samples change fastest: neighbours in memory.
Place place_of(const Tiles& t, int64_t samples, int64_t together, int64_t i) {
    const int64_t parts = (samples + together - 1) / together, first = i % parts * together, tile = i / parts;
    const int u_w = int(tile % t.w.tiles()) * t.w.tile;
    const int u_h = int(tile / t.w.tiles()) * t.h.tile;
    return {u_h, u_w, first, samples - first < together ? samples : first + together};
}

bool belongs_past_caches(const Result& result, int channels) {
    const bool aligned = result.channel % W == 0 && result.column % W == 0 &&
                         reinterpret_cast<uintptr_t>(result.data) % sizeof(vf) == 0;
    return aligned && result.channel * channels > streamed_floats;
}

// All places, in equal parts to the threads; which thread takes which changes no result.
void run(Work work, int64_t samples, float* workspace, int threads) {
    const Tiles& t = work.tiles;
    const TileRunner run_one = runner_of(t, std::make_integer_sequence<int, std::size(conv_tile_sizes)>());
    const int64_t groups = (samples + W - 1) / W, tiles = int64_t(t.h.tiles()) * t.w.tiles();
    int64_t together = groups_together(t);
    while (together > 1 && (groups + together - 1) / together * tiles < 2 * threads) together--;
    const int64_t places = (groups + together - 1) / together * tiles;
    work.past_caches = belongs_past_caches(work.result, t.results);
#pragma omp parallel for num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        const int64_t first = thread * places / threads, last = (thread + 1) * places / threads;
        if (first == last) continue;
        float* own = workspace + thread * workspace_floats(t);
        float *next_tiles = own + tiles_floats(t), *partial = next_tiles + tiles_floats(t);
        ThreadWorkspace workspace{own, next_tiles, partial, {work, partial + groups_together(t) * t.sums_floats()}};
        Place place = place_of(t, samples, together * W, first);
        workspace.packer.begin(place, 0, workspace.tiles);
        workspace.packer.pack_remaining();
        for (int64_t i = first; i < last; i++) {
            const Place following = place_of(t, samples, together * W, i + 1);
            run_one(work, place, i + 1 < last ? &following : nullptr, workspace);
            place = following;
        }
        settle<true>();
    }
}

// Where samples take part in the tile (flat, tiny): `positions` of `length` floats a channel, cut into whole vectors,
// then what is left of the last vector. A 1x1 convolution knows one position only.
void run_flat(Tiles t, SparseWeights weights, const float* source, float* result, int positions, int64_t length,
              const float* bias, const float* residual, bool relu, float* workspace, int threads) {
    t.h.source_size = t.h.result_size = t.h.steps = positions;
    t.h.source_pad = t.w.source_pad = 0;
    const auto run_part = [&](int64_t first, int vectors, int64_t samples) {
        t.w.source_size = t.w.result_size = t.w.steps = vectors;
        const Source from{source + first, positions * length, length, W};
        const Result to{result + first, positions * length, length, W};
        const float* added = residual ? residual + first : nullptr;
        run({t, weights, from, to, bias, added, relu, false}, samples, workspace, threads);
    };
    const int64_t whole = length / W * W;
    if (whole > 0) run_part(0, int(whole / W), W);
    if (whole < length) run_part(whole, 1, length - whole);
}

void run_product(const ConvShape& s, Product product, SparseWeights weights, const float* source, float* result,
                 const float* bias, const float* residual, bool relu, float* workspace, int threads) {
    const Tiles t = tiles_of(s, product);
    const int64_t n = s.n;
    if (t.flat || t.tiny) {
        const int positions = t.flat ? 1 : t.h.tile;
        const int64_t length = t.flat ? s.input_map() : n;
        return run_flat(t, weights, source, result, positions, length, bias, residual, relu, workspace, threads);
    }
    const Source from{source, t.h.source_size * t.w.source_size * n, t.w.source_size * n, n};
    const Result to{result, t.h.result_size * t.w.result_size * n, t.w.result_size * n, n};
    run({t, weights, from, to, bias, residual, relu, false}, n, workspace, threads);
}

}  // namespace

int64_t conv_workspace(ConvShape shape, int threads) {
    const int64_t forward = workspace_floats(tiles_of(shape, Product::forward));
    const int64_t grad_input = workspace_floats(tiles_of(shape, Product::grad_input));
    return (forward > grad_input ? forward : grad_input) * threads;
}

void conv_forward(ConvShape shape, const float* x, const int32_t* starts, const float* values, const uint16_t* offsets,
                  const float* bias, float* y, float* workspace, int threads) {
    run_product(shape, Product::forward, {starts, values, offsets}, x, y, bias, nullptr, false, workspace, threads);
}

void conv_forward_fused(ConvShape shape, const float* x, const int32_t* starts, const float* values,
                        const uint16_t* offsets, const float* bias, const float* residual, bool relu, float* y,
                        float* workspace, int threads) {
    run_product(shape, Product::forward, {starts, values, offsets}, x, y, bias, residual, relu, workspace, threads);
}

void conv_grad_input(ConvShape shape, const float* grad_y, const int32_t* starts, const float* values,
                     const uint16_t* offsets, float* grad_x, float* workspace, int threads) {
    run_product(shape, Product::grad_input, {starts, values, offsets}, grad_y, grad_x, nullptr, nullptr, false, workspace,
                threads);
}

}  // namespace torchswat::SWAT_ISA
