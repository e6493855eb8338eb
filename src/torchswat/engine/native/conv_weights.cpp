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
#include "curves.h"
#include "fours.h"
#include "stream.h"

#include <iterator>
#include <utility>

namespace torchswat::SWAT_ISA {
namespace {

constexpr int lines_ahead = 64;               // that are asked for before they are copied
constexpr int fetched_bytes = 128;            // that arrive when one of them is asked for
constexpr int64_t partial_bytes = 1 << 20;    // that may be taken of the second-level cache
constexpr int64_t streamed_floats = 1 << 19;  // a larger result goes past the caches

// A tensor [channels][h][w][n], in entries.
template <class Entry> struct Tensor {
    Entry* data;
    int64_t channel, row, column;
};

template <class M> struct Work {
    using Entry = typename M::Entry;

    const Tiles& tiles;
    SparseWeights weights;
    Tensor<const Entry> source;
    int source_channels;
    Tensor<Entry> result;
    const float* bias;
    const Entry* residual;  // laid out as the result, added before the activation; or null
    Activation after{};
    const QuantizedEnd* end;  // of fours, which have no bias; their result and residual are fours as well
    float outside;            // what lies around the source
    bool past_caches;         // the result is large and its vectors are aligned
};

// One tile and the samples [first, last) that a thread works through with it.
struct Place {
    int u_h, u_w;
    int64_t first, last;

    int groups() const { return int((last - first + W - 1) / W); }
};

// Where a vector of the tile of a channel comes from and goes to: entries, and floats, from the beginning of the channel.
struct Position {
    int64_t source;  // or outside
    int64_t to;
};
constexpr int64_t outside = -1;  // of the map, where there are zeros

// Packs the tiles of one block of channels after the other, for all groups of samples of a place: a position at a
// time, whose samples are neighbours in memory. Done a little with each row of the result of the block before, so that
// the multiply-adds hide the way from memory; the lines are asked for some positions ahead.
template <class M> class Packer {
    using Entry = typename M::Entry;

    const Work<M>& work;
    Position* positions;  // of a channel
    int count = 0;
    int64_t first = 0, last = 0;  // samples
    const Entry *channel = nullptr, *channel_ahead = nullptr;
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
    // A lone channel has no second one to pair with.
    bool has(const Entry* channel, int i) const {
        return i < 1 || channel < work.source.data + (work.source_channels - i) * work.source.channel;
    }
    void fetch() {
        const int64_t source = positions[ahead].source;
        if (source != outside) {
            for (int i = 0; i < M::channels && has(channel_ahead, i); i++) {
                const Entry* from = channel_ahead + i * work.source.channel + source + first;
                const Entry* end = from + (last - first);
                for (; from < end; from += fetched_bytes / sizeof(Entry)) __builtin_prefetch(from);
            }
        }
        if (++ahead == count) {
            ahead = 0;
            channel_ahead += M::channels * work.source.channel;
        }
    }
    static void copy_line(const float* from, const float*, int64_t samples, float* to, int64_t apart) {
        for (; samples >= W; samples -= W, from += W, to += apart) store(to, loadu(from));
        if (samples > 0) store(to, load_first(from, int(samples)));
    }
    static void copy_line(const bf16* from, const bf16* second, int64_t samples, float* to, int64_t apart) {
        for (; samples >= W; samples -= W, from += W, second += W, to += apart) {
            store(to, pair_up(load_bits(from), load_bits(second)));
        }
        if (samples > 0) {
            store(to, pair_up(load_first_bits(from, int(samples)), load_first_bits(second, int(samples))));
        }
    }
    static void copy_line(const bf16* from, std::nullptr_t, int64_t samples, float* to, int64_t apart) {
        for (; samples > 0; samples -= W, from += W, to += apart) {
            store(to, pair_up(load_first_bits(from, samples < W ? int(samples) : W), vh{}));
        }
    }
    void copy() {
        const Position position = positions[at];
        const int64_t group_floats = work.tiles.block_floats();
        float* group = to + position.to;
        if (position.source == outside) {
            const vf around = splat_pair(work.outside);
            for (int64_t n = first; n < last; n += W, group += group_floats) store(group, around);
        } else {
            const Entry* source = channel + position.source + first;
            if (M::channels == 1 || has(channel, 1)) {
                copy_line(source, source + work.source.channel, last - first, group, group_floats);
            } else if constexpr (M::channels == 2) {
                copy_line(source, nullptr, last - first, group, group_floats);
            }
        }
        if (++at == count) {
            at = 0;
            channel += M::channels * work.source.channel;
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
    Packer(const Work<M>& work, float* memory) : work(work), positions(reinterpret_cast<Position*>(memory)) {}

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
template <class Entry> struct Target {
    Entry* data;
    int h, w, lanes;
    bool whole;
};

template <class M>
Target<typename M::Entry> target_of(const Work<M>& work, const Place& place, int64_t sample, int lanes, int result_class) {
    const Axis& h = work.tiles.h;
    const Axis& w = work.tiles.w;
    const int first_h = place.u_h * h.classes + result_class / w.classes;
    const int first_w = place.u_w * w.classes + result_class % w.classes;
    const bool whole = first_h + (h.tile - 1) * h.classes < h.result_size &&
                       first_w + (w.tile - 1) * w.classes < w.result_size && lanes == W;
    typename M::Entry* data = work.result.data + first_h * work.result.row + first_w * work.result.column + sample;
    return {data, first_h, first_w, lanes, whole};
}

// A tile that is cut off by the edge of the map, has less than W samples, or is followed by a curve.
template <class M, int H, int V>
__attribute__((noinline)) void write_part(const Work<M>& work, const Target<typename M::Entry>& target, int channel,
                                          float* sum) {
    const Axis& h = work.tiles.h;
    const Axis& w = work.tiles.w;
    typename M::Entry* data = target.data + channel * work.result.channel;
    for (int i = 0; i < H; i++) {
        for (int j = 0; j < V; j++, sum += W) {
            const int at_h = target.h + i * h.classes, at_w = target.w + j * w.classes;
            if (at_h >= h.result_size || at_w >= w.result_size) continue;
            const int64_t to = i * h.classes * work.result.row + j * w.classes * work.result.column;
            vf x = load(sum);
            if (work.residual) x += load_first(work.residual + (data + to - work.result.data), target.lanes);
            if constexpr (M::channels == 1) {
                store(sum, x);
                if (work.after.kind != Activation::none) apply_activation(sum, W, work.after, sum);
                x = load(sum);
            }
            store_first(data + to, x, target.lanes);
        }
    }
}

template <bool past_caches, class Entry, int H, int V>
SWAT_INLINE void write_whole(Entry* data, int64_t row, int64_t column, const Registers<H, V>& sum) {
#pragma GCC unroll 8
    for (int i = 0; i < H; i++, data += row) {
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) put<past_caches>(data + j * column, sum.at[i][j]);
    }
}

// What follows the convolution, on a whole tile: the residual and a cut to a range.
template <class M, int H, int V>
SWAT_INLINE void finish(const Work<M>& work, int64_t to, int64_t row, int64_t column, Registers<H, V>& sum) {
    if (work.residual) {
        const typename M::Entry* from = work.residual + to;
#pragma GCC unroll 8
        for (int i = 0; i < H; i++, from += row) {
#pragma GCC unroll 16
            for (int j = 0; j < V; j++) sum.at[i][j] += loadu(from + j * column);
        }
    }
    if (work.after.kind == Activation::clip) {
#pragma GCC unroll 32
        for (int i = 0; i < H * V; i++) sum.at[i / V][i % V] = between(sum.at[i / V][i % V], work.after.low, work.after.high);
    }
}

template <class M, int H, int V>
SWAT_INLINE void write(const Work<M>& work, const Target<typename M::Entry>& target, int channel, float* spare,
                       Registers<H, V>& sum) {
    if (!target.whole || work.after.kind > Activation::clip) {
        sum.store_to(spare);
        return write_part<M, H, V>(work, target, channel, spare);
    }
    const int64_t row = work.tiles.h.classes * work.result.row;
    const int64_t column = work.tiles.w.classes * work.result.column;
    typename M::Entry* data = target.data + channel * work.result.channel;
    finish(work, data - work.result.data, row, column, sum);
    if (work.past_caches) {
        write_whole<true>(data, row, column, sum);
    } else {
        write_whole<false>(data, row, column, sum);
    }
}

// What a row's sums begin with.
template <class M> SWAT_INLINE vf first_sum(const Work<M>& work, int channel) {
    if constexpr (std::is_same_v<M, Fours>) return as_floats(splat_int(work.end->start[channel]));
    else return splat(work.bias ? work.bias[channel] : 0.0f);
}

// The results of up to four filters, whose sums lie one after the other.
template <bool added, bool whole, int H, int V>
void write_fours(const Work<Fours>& work, const Target<float>& target, const FourFilters& filters, int first,
                 const float* sums) {
    const Axis &h = work.tiles.h, &w = work.tiles.w;
    const Tensor<float>& result = work.result;
    const int lanes = whole ? W : target.lanes;
    const int64_t in_channel = target.data - result.data;
    float* data = target.data + (work.end->is_float ? first : first / 4) * result.channel;
    const float* residual = added ? work.residual + first / 4 * result.channel + in_channel : nullptr;
    for (int i = 0; i < H; i++) {
        for (int j = 0; j < V; j++, sums += W) {
            if (!whole && (target.h + i >= h.result_size || target.w + j >= w.result_size)) continue;
            const int64_t to = i * result.row + j * result.column;
            vf before{};
            if constexpr (added) before = load_first(residual + to, lanes);
            if (work.end->is_float) {
                for (int f = 0; f < filters.count; f++) {
                    const vf y = filters.number<added>(f, load(sums + f * H * V * W), before);
                    store_first(data + f * result.channel + to, y, lanes);
                }
            } else {
                store_first(data + to, filters.bytes<added>(sums, H * V * W, before), lanes);
            }
        }
    }
}

// Asks for the lines of the results of four filters before they are summed: a store to a line that is not there waits.
template <int H, int V> void fetch_results(const Work<Fours>& work, const Target<float>& target, int first) {
    const Axis &h = work.tiles.h, &w = work.tiles.w;
    const int64_t channel = first / 4 * work.result.channel;
    for (int i = 0; i < H && target.h + i < h.result_size; i++) {
        for (int j = 0; j < V && target.w + j < w.result_size; j++) {
            const int64_t to = channel + i * work.result.row + j * work.result.column;
            __builtin_prefetch(target.data + to, 1);
            if (work.residual) __builtin_prefetch(work.residual + (target.data - work.result.data) + to);
        }
    }
}

template <int H, int V>
void write_fours(const Work<Fours>& work, const Target<float>& target, int first, const float* sums) {
    const FourFilters filters(*work.end, first, work.tiles.results, work.after.kind != Activation::none);
    if (work.residual) {
        (target.whole ? write_fours<true, true, H, V> : write_fours<true, false, H, V>)(work, target, filters, first, sums);
    } else {
        (target.whole ? write_fours<false, true, H, V> : write_fours<false, false, H, V>)(work, target, filters, first, sums);
    }
}

// One block of channels, packed for one group of samples, to all rows of the result.
template <class Loop, class M = typename Loop::Multiply>
void add_block(const Work<M>& work, const Place& place, int block, int group, const float* tile, float* partial,
               Packer<M>* next) {
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
            if constexpr (std::is_same_v<M, Fours>) {
                if (last && channel % 4 == 0 && !work.end->is_float) {
                    fetch_results<H, V>(work, target_of(work, place, sample, lanes, result_class), channel);
                }
            }
            Registers<H, V> sum;
            if (first) {
                sum.fill(first_sum(work, channel));
            } else {
                sum.load_from(partial);
            }
            Loop::add_row(sum, t, tile, work.weights, start);
            if constexpr (std::is_same_v<M, Fours>) {
                constexpr int64_t apart = H * V * W;
                float* sums = first && last ? partial - channel / 4 * 4 * apart : partial;  // the four lines stay in the cache
                sum.store_to(sums);
                if (last && (channel % 4 == 3 || channel + 1 == t.results)) {
                    const Target<float> target = target_of(work, place, sample, lanes, result_class);
                    write_fours<H, V>(work, target, channel / 4 * 4, sums - channel % 4 * apart);
                }
            } else if (last) {
                write(work, target_of(work, place, sample, lanes, result_class), channel, partial, sum);
            } else {
                sum.store_to(partial);
            }
        }
    }
}

// What a thread works with: the packed tiles of this block and of the next, and the sums of all rows so far.
template <class M> struct ThreadWorkspace {
    float *tiles, *next_tiles, *partial;
    Packer<M> packer;
};

// One place; its first block is packed already, and that of the following place, if there is one, will be.
template <class Loop, class M = typename Loop::Multiply>
void run_tile(const Work<M>& work, const Place& place, const Place* following, ThreadWorkspace<M>& workspace) {
    const Tiles& t = work.tiles;
    for (int block = 0; block < t.blocks; block++) {
        const bool last = block + 1 == t.blocks;
        Packer<M>* next = last && !following ? nullptr : &workspace.packer;
        if (next) next->begin(last ? *following : place, last ? 0 : block + 1, workspace.next_tiles);
        for (int group = 0; group < place.groups(); group++) {
            add_block<Loop>(work, place, block, group, workspace.tiles + group * t.block_floats(),
                            workspace.partial + group * t.sums_floats(), next);
        }
        if (next) next->pack_remaining();
        std::swap(workspace.tiles, workspace.next_tiles);
    }
}

template <class M> using TileRunner = void (*)(const Work<M>&, const Place&, const Place*, ThreadWorkspace<M>&);

template <class M, int EH> TileRunner<M> trimmed_runner(int edges_w) {
    return edges_w == low    ? run_tile<Trimmed<M, EH, low>>
           : edges_w == high ? run_tile<Trimmed<M, EH, high>>
                             : run_tile<Trimmed<M, EH, low | high>>;
}

template <class M>
void run_trimmed(const Work<M>& work, const Place& place, const Place* following, ThreadWorkspace<M>& workspace) {
    const Axis &h = work.tiles.h, &w = work.tiles.w;
    const int edges_h = h.at_low(place.u_h) * low + h.at_high(place.u_h) * high;
    const int edges_w = w.at_low(place.u_w) * low + w.at_high(place.u_w) * high;
    const TileRunner<M> runner = edges_h == low    ? trimmed_runner<M, low>(edges_w)
                                 : edges_h == high ? trimmed_runner<M, high>(edges_w)
                                                   : trimmed_runner<M, low | high>(edges_w);
    runner(work, place, following, workspace);
}

template <class M, int H, int V> TileRunner<M> untrimmed_runner(Lists lists) {
    return lists == Lists::by_pattern ? run_tile<Patterned<M, H, V>> : run_tile<Plain<M, H, V>>;
}

template <class M, int... I> TileRunner<M> runner_of(const Tiles& t, std::integer_sequence<int, I...>) {
    if (t.flat) return run_tile<Plain<M, 1, flat_tile>>;
    if (t.tiny) return run_tile<Tiny<M>>;
    if (t.lists == Lists::by_tap) return run_trimmed<M>;
    TileRunner<M> found = nullptr;
    ((t.h.tile == conv_tile_sizes[I][0] && t.w.tile == conv_tile_sizes[I][1]
          ? void(found = untrimmed_runner<M, conv_tile_sizes[I][0], conv_tile_sizes[I][1]>(t.lists))
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

bool belongs_past_caches(const Tensor<bf16>&, int) { return false; }  // a vector is half a line
bool belongs_past_caches(const Tensor<float>& result, int channels) {
    const bool aligned = result.channel % W == 0 && result.column % W == 0 &&
                         reinterpret_cast<uintptr_t>(result.data) % sizeof(vf) == 0;
    return aligned && result.channel * channels > streamed_floats;
}

// All places, in equal parts to the threads; which thread takes which changes no result.
template <class M> void run(Work<M> work, int64_t samples, float* workspace, int threads) {
    const Tiles& t = work.tiles;
    const TileRunner<M> run_one = runner_of<M>(t, std::make_integer_sequence<int, std::size(conv_tile_sizes)>());
    const int64_t groups = (samples + W - 1) / W, tiles = int64_t(t.h.tiles()) * t.w.tiles();
    int64_t together = groups_together(t);
    while (together > 1 && (groups + together - 1) / together * tiles < 2 * threads) together--;
    const int64_t places = (groups + together - 1) / together * tiles;
    work.past_caches = !work.end && belongs_past_caches(work.result, t.results);
#pragma omp parallel for num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        const int64_t first = thread * places / threads, last = (thread + 1) * places / threads;
        if (first == last) continue;
        float* own = workspace + thread * workspace_floats(t);
        float *next_tiles = own + tiles_floats(t), *partial = next_tiles + tiles_floats(t);
        float* positions = partial + groups_together(t) * t.sums_floats();
        ThreadWorkspace<M> workspace{own, next_tiles, partial, {work, positions}};
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

// Operands of a product: `source` and `result` are [channels][h][w][n].
template <class M> struct Operands {
    using Entry = typename M::Entry;

    SparseWeights weights;
    const Entry* source;
    int channels;  // of the source
    Entry* result;
    const float* bias = nullptr;
    const Entry* residual = nullptr;
    Activation after{};
    const QuantizedEnd* end = nullptr;
    float outside = 0;
};

// Where samples take part in the tile (flat, tiny): `positions` of `length` entries a channel, cut into whole vectors,
// then what is left of the last vector. A 1x1 convolution knows one position only.
template <class M>
void run_flat(Tiles t, const Operands<M>& o, int positions, int64_t length, float* workspace, int threads) {
    t.h.source_size = t.h.result_size = t.h.steps = positions;
    t.h.source_pad = t.w.source_pad = 0;
    const auto run_part = [&](int64_t first, int vectors, int64_t samples) {
        t.w.source_size = t.w.result_size = t.w.steps = vectors;
        const auto* added = o.residual ? o.residual + first : nullptr;
        run<M>({t, o.weights, {o.source + first, positions * length, length, W}, o.channels,
                {o.result + first, positions * length, length, W}, o.bias, added, o.after, o.end, o.outside, false},
               samples, workspace, threads);
    };
    const int64_t whole = length / W * W;
    if (whole > 0) run_part(0, int(whole / W), W);
    if (whole < length) run_part(whole, 1, length - whole);
}

template <class M>
void run_product(const ConvShape& s, Product product, const Operands<M>& o, float* workspace, int threads) {
    const Tiles t = tiles_of(s, product, M::channels);
    const int64_t n = s.n;
    if (t.flat || t.tiny) {
        const int positions = t.flat ? 1 : t.h.tile;
        return run_flat(t, o, positions, t.flat ? s.input_map() : n, workspace, threads);
    }
    run<M>({t, o.weights, {o.source, t.h.source_size * t.w.source_size * n, t.w.source_size * n, n}, o.channels,
            {o.result, t.h.result_size * t.w.result_size * n, t.w.result_size * n, n}, o.bias, o.residual, o.after, o.end,
            o.outside, false},
           n, workspace, threads);
}

}  // namespace

int64_t workspace_of(const ConvShape& shape, Product product, int channels, int threads) {
    return workspace_floats(tiles_of(shape, product, channels)) * threads;
}

int64_t conv_workspace(ConvShape shape, int threads) {
    const int64_t forward = workspace_of(shape, Product::forward, 1, threads);
    const int64_t grad_input = workspace_of(shape, Product::grad_input, 1, threads);
    return forward > grad_input ? forward : grad_input;
}

void conv_forward(ConvShape shape, const float* x, const int32_t* starts, const float* values, const uint16_t* offsets,
                  const float* bias, float* y, float* workspace, int threads) {
    run_product<Singles>(shape, Product::forward, {{starts, values, offsets}, x, shape.c, y, bias}, workspace, threads);
}

void conv_forward_fused(ConvShape shape, const float* x, const int32_t* starts, const float* values,
                        const uint16_t* offsets, const float* bias, const float* residual, Activation after, float* y,
                        float* workspace, int threads) {
    run_product<Singles>(shape, Product::forward, {{starts, values, offsets}, x, shape.c, y, bias, residual, after},
                         workspace, threads);
}

// Channels of the shape are counted in fours: X [c][h][w][n][4], Y [ceil(k / 4)][out_h][out_w][n][4] or float [k][...].
void conv_fours(const ConvShape& shape, const uint8_t* x, const int32_t* starts, const float* values,
                const uint16_t* offsets, const QuantizedEnd& end, const uint8_t* residual, bool relu, void* y,
                float* workspace, int threads) {
    run_product<Fours>(shape, Product::forward,
                       {{starts, values, offsets}, reinterpret_cast<const float*>(x), shape.c, static_cast<float*>(y),
                        nullptr, reinterpret_cast<const float*>(residual), rectified(relu), &end, four_times(shape.outside)},
                       workspace, threads);
}

void conv_grad_input(ConvShape shape, const float* grad_y, const int32_t* starts, const float* values,
                     const uint16_t* offsets, float* grad_x, float* workspace, int threads) {
    run_product<Singles>(shape, Product::grad_input, {{starts, values, offsets}, grad_y, shape.k, grad_x}, workspace,
                         threads);
}

void conv_forward_pairs(const ConvShape& shape, const bf16* x, SparseWeights weights, const float* bias, bf16* y,
                        float* workspace, int threads) {
    run_product<Pairs>(shape, Product::forward, {weights, x, shape.c, y, bias}, workspace, threads);
}

void conv_grad_input_pairs(const ConvShape& shape, const bf16* grad_y, SparseWeights weights, bf16* grad_x,
                           float* workspace, int threads) {
    run_product<Pairs>(shape, Product::grad_input, {weights, grad_y, shape.k, grad_x}, workspace, threads);
}

}  // namespace torchswat::SWAT_ISA
