// Forward of a convolution with sparse weights for few samples: the lanes of a vector are neighbours in a row.
//
//     X [c][h][w][n]     x a row is w*n floats; a vector of it has W neighbours, whatever n is
//       |  copy a block of channels, once for each column of the kernel, shifted so that all loads are aligned
//       v
//     tile [c in block][s][phase of h][row][V]        at most 36 KB: stays in the first-level cache
//       |  for each filter: registers[T] += weight * tile[offset + 0..T-1]
//       v
//     partial[filter][T]     and, after the last block, Y = activation(partial + residual)
//
// With a copy for each column s, and the source rows of one phase (index % stride) one after the other, tap (r, s) of
// a tile of H rows and V vectors a row is one run of T = H*V vectors: the inner loop knows no geometry. Small maps are
// one row (*whole*): then there is a copy for each tap, with zeros where the tap reaches over an edge. A 1x1 kernel of
// stride 1 takes the map, samples and all, for one long row.
//
// For a kept weight: T multiply-adds with vectors of the first-level cache, one broadcast, a part of a load of its
// offset; 6 bytes of list, read once a tile. Each result is summed by one thread in the order of its list.
#include "buffer.h"
#include "conv_tiles.h"
#include "curves.h"
#include "fours.h"

#include <utility>

namespace torchswat::SWAT_ISA {
namespace {

constexpr int most_vectors = registers == 32 ? 24 : 12;  // that a tile may have
constexpr int chains = 8;                                // independent sums that hide the latency of a multiply-add

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int least(int a, int b) { return a < b ? a : b; }

constexpr int64_t few = 1 << 14;                         // multiply-adds, in vectors, that one thread does alone

// How a convolution is cut into tiles; all in vectors, rows and channels.
struct Cut {
    ConvShape shape;
    bool whole;                   // the map is one row of one tile, with a copy for each tap
    int length;                   // floats of a row of the result
    int rows, height, width;      // rows of the result; of a tile, and its vectors a row
    int phases, extent, copies;   // of the rows of the source; rows of a phase; shifted copies
    int channel_vectors, block, blocks;

    int vectors() const { return height * width; }
    int tiles_w() const { return ceil_div(ceil_div(length, W), width); }
    int tiles() const { return ceil_div(rows, height) * tiles_w(); }
    int offset(int r, int s) const {
        if (whole) return (r * shape.s + s) * width;
        return ((s * phases + r % shape.stride_h) * extent + r / shape.stride_h) * width;
    }
    bool shifts() const {  // every copy is the source, moved
        if (!whole) return shape.stride_w == 1;
        return shape.stride_h == 1 && shape.stride_w == 1 && shape.out_h == shape.h && shape.out_w == shape.w;
    }
    // Loads and stores of vectors for the whole product, at a density of 0.2.
    double cost() const {
        const double kept = 0.2 * shape.c * shape.r * shape.s;
        const double a_filter = kept * (vectors() + 2.0) + blocks * (2.0 * vectors() + 20);
        return tiles() * (shape.k * a_filter + (shifts() ? 3.0 : 20.0) * shape.c * channel_vectors);
    }
};

Cut cut_of(const ConvShape& s, bool whole, int height, int width) {
    Cut cut{s, whole, 0, 0, height, width, 1, 1, 1, 0, 0, 0};
    if (whole) {
        cut.length = s.out_h * s.out_w * s.n;
        cut.rows = 1;
        cut.copies = s.r * s.s;
    } else {
        cut.length = s.out_w * s.n;
        cut.rows = s.out_h;
        cut.copies = s.s;
        cut.phases = least(s.stride_h, s.r);
        cut.extent = height + (s.r - 1) / s.stride_h;
    }
    cut.channel_vectors = cut.copies * cut.phases * cut.extent * width;
    const int most = cache_bytes / (cut.channel_vectors * int(sizeof(vf)));
    cut.blocks = ceil_div(s.c, most < 1 ? 1 : most);
    cut.block = ceil_div(s.c, cut.blocks);
    cut.blocks = ceil_div(s.c, cut.block);
    return cut;
}

Cut best_cut(ConvShape s) {
    if (s.r == 1 && s.s == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_h == 0 && s.pad_w == 0) {
        s = {1, s.c, 1, s.h * s.w * s.n, s.k, 1, 1, 1, 1, 0, 0, 1, s.h * s.w * s.n};
    }
    const int across = ceil_div(s.out_w * s.n, W);
    Cut best = cut_of(s, false, 1, 1);
    for (int width = 1; width <= least(across, most_vectors); width++) {
        for (int height = 1; height <= s.out_h && height * width <= most_vectors; height++) {
            const Cut cut = cut_of(s, false, height, width);
            if (cut.cost() < best.cost()) best = cut;
        }
    }
    const int all = ceil_div(s.out_h * s.out_w * s.n, W);
    if (all <= most_vectors) {
        const Cut cut = cut_of(s, true, 1, all);
        if (cut.cost() < best.cost()) best = cut;
    }
    return best;
}

// Where a packed vector comes from: `from` floats into the channel, the lanes of `mask`; or, where lanes are gathered,
// the places of its lanes from there on.
struct Piece {
    int32_t from;
    uint32_t mask;
    const int32_t* places;
};

struct Job {
    Cut cut;
    const float* x;
    const int32_t* starts;
    const float* values;
    const uint16_t* offsets;
    const float *bias, *residual;
    Activation after;
    float* y;
    const int32_t* places;    // of each copy: where each lane comes from in its row (map), or -1
    const QuantizedEnd* end;  // of fours, which have no bias; their result and residual are fours as well
    float outside;            // what lies around the source
};

// ---- packing -----------------------------------------------------------------------------------------------

inline vf load_masked(const float* p, uint32_t mask, vf around) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_mask_loadu_ps(reinterpret_cast<__m512>(around), __mmask16(mask), p));
#else
    if (mask == all_lanes) return loadu(p);
    vf x = around;
    for (int lane = 0; lane < W; lane++) {
        if (mask >> lane & 1) x[lane] = p[lane];
    }
    return x;
#endif
}

inline vf gather(const float* p, uint32_t mask, const int32_t* places, vf around) {
#if defined(__AVX512F__)
    const __m512i at = _mm512_loadu_si512(places);
    return reinterpret_cast<vf>(_mm512_mask_i32gather_ps(reinterpret_cast<__m512>(around), __mmask16(mask), at, p, 4));
#else
    vf x = around;
    for (int lane = 0; lane < W; lane++) {
        if (mask >> lane & 1) x[lane] = p[places[lane]];
    }
    return x;
#endif
}

// For each copy, where its lanes come from: in a row of the source, or in the map where the cut is whole.
void find_places(const Cut& cut, int32_t* places) {
    const ConvShape& s = cut.shape;
    const int lanes = cut.tiles_w() * cut.width * W;
    for (int copy = 0; copy < cut.copies; copy++) {
        const int r = cut.whole ? copy / s.s : 0, tap = cut.whole ? copy % s.s : copy;
        for (int lane = 0; lane < lanes; lane++) {
            const int at = lane / s.n, p = cut.whole ? at / s.out_w : 0, q = at - p * s.out_w;
            const int row = cut.whole ? p * s.stride_h + r - s.pad_h : 0, column = q * s.stride_w + tap - s.pad_w;
            const bool inside = lane < cut.length && row >= 0 && row < s.h && column >= 0 && column < s.w;
            *places++ = inside ? (row * s.w + column) * s.n + lane % s.n : -1;
        }
    }
}

// The pieces of a channel's tile at row p and vector `first`, in the order in which they are stored.
void find_pieces(const Job& job, int p, int first, Piece* piece) {
    const Cut& cut = job.cut;
    const ConvShape& s = cut.shape;
    for (int copy = 0; copy < cut.copies; copy++) {
        for (int phase = 0; phase < cut.phases; phase++) {
            for (int i = 0; i < cut.extent; i++) {
                const int row = cut.whole ? 0 : (p + i) * s.stride_h + phase - s.pad_h;
                const bool inside = row >= 0 && row < s.h;
                const int32_t* places = job.places + (int64_t(copy) * cut.tiles_w() * cut.width + first) * W;
                for (int j = 0; j < cut.width; j++, places += W, piece++) {
                    piece->mask = 0;
                    piece->from = inside ? row * s.w * s.n : 0;
                    piece->places = places;
                    for (int lane = W - 1; inside && lane >= 0; lane--) {
                        if (places[lane] < 0) continue;
                        piece->mask |= 1u << lane;
                        if (cut.shifts()) piece->from = row * s.w * s.n + places[lane] - lane;
                    }
                }
            }
        }
    }
}

// The channels of a block.
template <bool shifts> void pack(const Job& job, int block, const Piece* pieces, float* to) {
    const Cut& cut = job.cut;
    const int last = least((block + 1) * cut.block, cut.shape.c);
    const vf around = splat_pair(job.outside);
    for (int c = block * cut.block; c < last; c++) {
        const float* map = job.x + c * cut.shape.input_map();
        for (int i = 0; i < cut.channel_vectors; i++, to += W) {
            const Piece& piece = pieces[i];
            const float* from = map + piece.from;
            const vf x = shifts ? load_masked(from, piece.mask, around) : gather(from, piece.mask, piece.places, around);
            store(to, x);
        }
    }
}

// ---- multiplying -------------------------------------------------------------------------------------------

// Where the vectors of a tile belong in a map of Y, and how many lanes of each.
struct Target {
    int32_t at[most_vectors];
    int32_t lanes[most_vectors];
};

Target target_of(const Cut& cut, int p, int first) {
    Target target;
    for (int j = 0; j < cut.vectors(); j++) {
        const int row = p + j / cut.width, column = (first + j % cut.width) * W;
        const int left = row < cut.rows ? cut.length - column : 0;
        target.at[j] = row * cut.length + column;
        target.lanes[j] = left < 0 ? 0 : least(left, W);
    }
    return target;
}

template <int T> struct Sums {
    vf at[T];

    void fill(vf value) {
#pragma GCC unroll 32
        for (int j = 0; j < T; j++) at[j] = value;
    }
    void load_from(const float* p) {
#pragma GCC unroll 32
        for (int j = 0; j < T; j++) at[j] = load(p + j * W);
    }
    void store_to(float* p) const {
#pragma GCC unroll 32
        for (int j = 0; j < T; j++) store(p + j * W, at[j]);
    }
    // Y of a filter: residual added, cut to a range.
    void finish(const Target& target, const float* residual, Activation after, float* y) {
#pragma GCC unroll 32
        for (int j = 0; j < T; j++) {
            if (!target.lanes[j]) continue;
            vf x = at[j];
            if (residual) x += load_first(residual + target.at[j], target.lanes[j]);
            if (after.kind == Activation::clip) x = between(x, after.low, after.high);
            store_first(y + target.at[j], x, target.lanes[j]);
        }
    }
};

// The same for other activations, of sums in the cache: the curves are not in every loop above.
__attribute__((noinline)) void finish_curved(const Target& target, int vectors, float* sums, const float* residual,
                                             Activation after, float* y) {
    for (int j = 0; residual && j < vectors; j++) {
        if (!target.lanes[j]) continue;
        store(sums + j * W, load(sums + j * W) + load_first(residual + target.at[j], target.lanes[j]));
    }
    apply_activation(sums, int64_t(vectors) * W, after, sums);
    for (int j = 0; j < vectors; j++) {
        if (target.lanes[j]) store_first(y + target.at[j], load(sums + j * W), target.lanes[j]);
    }
}

template <class M, int T>
inline __attribute__((always_inline)) void add(Sums<T>& sums, const char* tile, float value, uint64_t offset) {
    const vf weight = M::spread(value);
    const float* source = reinterpret_cast<const float*>(tile + offset * sizeof(vf));
#pragma GCC unroll 32
    for (int j = 0; j < T; j++) sums.at[j] = M::add(sums.at[j], weight, load(source + j * W));
}

// The kept weights of one filter times the packed tile. Small tiles are summed in several chains.
template <class M, int T>
inline __attribute__((always_inline)) void add_list(Sums<T>& sums, const char* tile, const float* values,
                                                    const uint16_t* offsets, int count) {
    constexpr int sets = T >= chains ? 1 : T >= chains / 2 ? 2 : 4;
    Sums<T> more[4];
#pragma GCC unroll 4
    for (int set = 1; set < sets; set++) more[set].fill(vf{});
    int i = 0;
    for (; i + 4 <= count; i += 4) {
        uint64_t four;  // offsets at one load
        std::memcpy(&four, offsets + i, sizeof four);
        add<M>(sums, tile, values[i], four & 0xffff);
        add<M>(sets > 1 ? more[1] : sums, tile, values[i + 1], four >> 16 & 0xffff);
        add<M>(sets > 2 ? more[2] : sums, tile, values[i + 2], four >> 32 & 0xffff);
        add<M>(sets > 2 ? more[3] : sets > 1 ? more[1] : sums, tile, values[i + 3], four >> 48);
    }
    for (; i < count; i++) add<M>(sums, tile, values[i], offsets[i]);
#pragma GCC unroll 4
    for (int set = 1; set < sets; set++) {
#pragma GCC unroll 32
        for (int j = 0; j < T; j++) sums.at[j] = M::join(sums.at[j], more[set].at[j]);
    }
}

// The results of up to four filters, whose sums lie one after the other.
template <bool added, int T>
void write_fours(const Job& job, const Target& target, int first, int filters, const float* sums) {
    const int64_t map = int64_t(job.cut.rows) * job.cut.length;
    const FourFilters end(*job.end, first, filters, job.after.kind != Activation::none);
    const float* residual = added ? job.residual + first / 4 * map : nullptr;
    float* y = job.y + (job.end->is_float ? first : first / 4) * map;
    for (int j = 0; j < T; j++, sums += W) {
        if (!target.lanes[j]) continue;
        vf before{};
        if constexpr (added) before = load_first(residual + target.at[j], target.lanes[j]);
        if (job.end->is_float) {
            for (int f = 0; f < end.count; f++) {
                const vf number = end.number<added>(f, load(sums + f * T * W), before);
                store_first(y + f * map + target.at[j], number, target.lanes[j]);
            }
        } else {
            store_first(y + target.at[j], end.bytes<added>(sums, T * W, before), target.lanes[j]);
        }
    }
}

// Filters [k0, k1) of the tile at row p and vector `first`; of fours, k0 is a multiple of four.
template <class M, int T>
void run_tile(const Job& job, int p, int first, int k0, int k1, Piece* pieces, float* tile, float* partial) {
    constexpr bool is_fours = std::is_same_v<M, Fours>;
    const Cut& cut = job.cut;
    const int64_t map = int64_t(cut.rows) * cut.length;
    const Target target = target_of(cut, p, first);
    find_pieces(job, p, first, pieces);
    for (int block = 0; block < cut.blocks; block++) {
        (cut.shifts() ? pack<true> : pack<false>)(job, block, pieces, tile);
        const int32_t* starts = job.starts + int64_t(block) * cut.shape.k;
        float* so_far = partial;
        for (int k = k0; k < k1; k++, so_far += T * W) {
            Sums<T> sums;
            if (block == 0) {
                if constexpr (is_fours) sums.fill(as_floats(splat_int(job.end->start[k])));
                else sums.fill(splat(job.bias[k]));
            } else {
                sums.load_from(so_far);
            }
            const int32_t start = starts[k];
            add_list<M>(sums, reinterpret_cast<const char*>(tile), job.values + start, job.offsets + start,
                        starts[k + 1] - start);
            if constexpr (is_fours) {
                float* place = cut.blocks == 1 ? partial + k % 4 * T * W : so_far;  // the four lines stay in the cache
                sums.store_to(place);
                if (block + 1 == cut.blocks && (k % 4 == 3 || k + 1 == k1)) {
                    const auto write = job.residual ? write_fours<true, T> : write_fours<false, T>;
                    write(job, target, k / 4 * 4, k1, place - k % 4 * T * W);
                }
            } else {
                const bool last = block + 1 == cut.blocks, curved = job.after.kind > Activation::clip;
                const float* residual = job.residual ? job.residual + k * map : nullptr;
                if (!last || curved) sums.store_to(so_far);
                if (last && curved) finish_curved(target, T, so_far, residual, job.after, job.y + k * map);
                if (last && !curved) sums.finish(target, residual, job.after, job.y + k * map);
            }
        }
    }
}

using TileRunner = void (*)(const Job&, int, int, int, int, Piece*, float*, float*);

template <class M, int... I> TileRunner runner_of(int vectors, std::integer_sequence<int, I...>) {
    static constexpr TileRunner runners[] = {run_tile<M, I + 1>...};
    return runners[vectors - 1];
}

int64_t tile_floats(const Cut& cut) { return int64_t(cut.block) * cut.channel_vectors * W; }
int64_t own_floats(const Cut& cut) { return tile_floats(cut) + int64_t(cut.shape.k + 3) * cut.vectors() * W; }

// Every tile and every filter (four of them at a time), in equal parts to the threads.
template <class M> void run(Job job, float* workspace, int threads) {
    constexpr int unit = std::is_same_v<M, Fours> ? 4 : 1;
    const Cut& cut = job.cut;
    Buffer<int32_t> places(size_t(cut.copies) * cut.tiles_w() * cut.width * W);
    find_places(cut, places.data);
    job.places = places.data;
    const TileRunner run_one = runner_of<M>(cut.vectors(), std::make_integer_sequence<int, most_vectors>());
    const int units = ceil_div(cut.shape.k, unit);
    const int64_t all = int64_t(cut.tiles()) * units;
    if (int64_t(job.starts[int64_t(cut.blocks) * cut.shape.k]) * cut.tiles() * cut.vectors() < few) threads = 1;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int thread = 0; thread < threads; thread++) {
        float* own = workspace + thread * own_floats(cut);
        Buffer<Piece> pieces(cut.channel_vectors);
        int64_t at = thread * all / threads;
        const int64_t end = (thread + 1) * all / threads;
        while (at < end) {
            const int tile = int(at / units), first = int(at % units);
            const int last = end - at < units - first ? first + int(end - at) : units;
            run_one(job, tile / cut.tiles_w() * cut.height, tile % cut.tiles_w() * cut.width, first * unit,
                    least(last * unit, cut.shape.k), pieces.data, own, own + tile_floats(cut));
            at += last - first;
        }
    }
}

}  // namespace

void rows_tiling(ConvShape shape, int32_t* tiling) {
    const Cut cut = best_cut(shape);
    if (int64_t(cut.block) * cut.channel_vectors > 1 << 16) {
        invalid("A kernel of this size reaches further than 16-bit offsets do.");
    }
    *tiling++ = cut.block;
    *tiling++ = cut.blocks;
    *tiling++ = cut.channel_vectors;
    for (int r = 0; r < shape.r; r++) {
        for (int s = 0; s < shape.s; s++) *tiling++ = cut.offset(r, s);
    }
}

int64_t rows_workspace(ConvShape shape, int threads) { return own_floats(best_cut(shape)) * threads; }

void conv_rows(ConvShape shape, const float* x, const int32_t* starts, const float* values, const uint16_t* offsets,
               const float* bias, const float* residual, Activation after, float* y, float* workspace, int threads) {
    run<Singles>({best_cut(shape), x, starts, values, offsets, bias, residual, after, y, nullptr, nullptr, 0}, workspace,
                 threads);
}

// Channels of the shape are counted in fours: X [c][h][w][n][4], Y [ceil(k / 4)][out_h][out_w][n][4] or float [k][...].
void rows_fours(const ConvShape& shape, const uint8_t* x, const int32_t* starts, const float* values,
                const uint16_t* offsets, const QuantizedEnd& end, const uint8_t* residual, bool relu, void* y,
                float* workspace, int threads) {
    run<Fours>({best_cut(shape), reinterpret_cast<const float*>(x), starts, values, offsets, nullptr,
                reinterpret_cast<const float*>(residual), rectified(relu), static_cast<float*>(y), nullptr, &end,
                four_times(shape.outside)},
               workspace, threads);
}

}  // namespace torchswat::SWAT_ISA
