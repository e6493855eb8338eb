// Forward of a convolution with sparse weights for few samples: the lanes of a vector are neighbours in a row.
//
//     X [c][h][w][n]     x a row is w*n floats; a vector of it has W neighbours, whatever n is
//       |  copy a block of channels, once for each column of the kernel, shifted so that all loads are aligned
//       v
//     tile [c in block][s][phase of h][row][V]        at most 36 KB: stays in the first-level cache
//       |  for each filter: registers[T] += weight * tile[offset + 0..T-1]
//       v
//     partial[filter][T]     and, after the last block, Y = relu(partial + residual)
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
#include "kernels.h"

#include <utility>

namespace torchswat::SWAT_ISA {
namespace {

constexpr int most_vectors = registers == 32 ? 24 : 12;  // that a tile may have
constexpr int chains = 8;                                // independent sums that hide the latency of a multiply-add

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int least(int a, int b) { return a < b ? a : b; }

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
        return tiles() * (shape.k * a_filter + (shifts() ? 4.0 : 20.0) * shape.c * channel_vectors);
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

struct Job {
    Cut cut;
    const float* x;
    const int32_t* starts;
    const float* values;
    const uint16_t* offsets;
    const float *bias, *residual;
    bool relu;
    float* y;
    const int32_t* places;  // of copies that are no shift: where each lane comes from in its row (map), or -1
};

// ---- packing -----------------------------------------------------------------------------------------------

// Lanes [low, high) of the W floats at p; zeros in the others, which are not read.
inline vf load_between(const float* p, int low, int high) {
    if (low <= 0 && high >= W) return loadu(p);
    if (low < 0) low = 0;
    if (high > W) high = W;
    vf x{};
    if (low >= high) return x;
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(__mmask16((1u << high) - (1u << low)), p));
#else
    for (int lane = low; lane < high; lane++) x[lane] = p[lane];
    return x;
#endif
}

// The lanes whose place is not negative, of the W floats at p.
inline vf load_marked(const float* p, const int32_t* places) {
#if defined(__AVX512F__)
    const __m512i at = _mm512_loadu_si512(places);
    return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(_mm512_cmpge_epi32_mask(at, _mm512_setzero_si512()), p));
#else
    vf x{};
    for (int lane = 0; lane < W; lane++) {
        if (places[lane] >= 0) x[lane] = p[lane];
    }
    return x;
#endif
}

inline vf gather(const float* p, const int32_t* places) {
#if defined(__AVX512F__)
    const __m512i at = _mm512_loadu_si512(places);
    const __mmask16 inside = _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512());
    return reinterpret_cast<vf>(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, at, p, 4));
#else
    vf x{};
    for (int lane = 0; lane < W; lane++) {
        if (places[lane] >= 0) x[lane] = p[places[lane]];
    }
    return x;
#endif
}

// Where the lanes of each copy come from: in a row of the source, or in the map where the cut is whole.
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

// One row of one copy of a channel, from vector `first` on; `row` is null outside of the map.
void pack_row(const Job& job, int copy, const float* row, int first, float* to) {
    const Cut& cut = job.cut;
    const ConvShape& s = cut.shape;
    const int32_t* places = job.places + (int64_t(copy) * cut.tiles_w() * cut.width + first) * W;
    for (int j = 0; j < cut.width; j++, to += W, places += W) {
        const int at = (first + j) * W;
        vf x{};
        if (!row) {
        } else if (!cut.shifts()) {
            x = gather(row, places);
        } else if (cut.whole) {
            const int moved = (copy / s.s - s.pad_h) * s.w + copy % s.s - s.pad_w;
            x = load_marked(row + at + moved * s.n, places);
        } else {
            const int from = at + (copy - s.pad_w) * s.n;
            x = load_between(row + from, -from, s.w * s.n - from);
        }
        store(to, x);
    }
}

// The channels of a block for the tile at row p and vector `first`.
void pack(const Job& job, int block, int p, int first, float* to) {
    const Cut& cut = job.cut;
    const ConvShape& s = cut.shape;
    const int last = least((block + 1) * cut.block, s.c);
    for (int c = block * cut.block; c < last; c++) {
        const float* map = job.x + c * s.input_map();
        for (int copy = 0; copy < cut.copies; copy++) {
            for (int phase = 0; phase < cut.phases; phase++) {
                for (int i = 0; i < cut.extent; i++, to += cut.width * W) {
                    const int at = cut.whole ? 0 : (p + i) * s.stride_h + phase - s.pad_h;
                    const float* row = at >= 0 && at < s.h ? map + int64_t(at) * s.w * s.n : nullptr;
                    pack_row(job, copy, row, first, to);
                }
            }
        }
    }
}

// ---- multiplying -------------------------------------------------------------------------------------------

// sums[T] += the kept weights of one filter times the packed tile.
template <int T>
inline __attribute__((always_inline)) void add_list(const float* values, const uint16_t* offsets, int count,
                                                    const char* tile, float* sums) {
    constexpr int sets = T >= chains ? 1 : T >= chains / 2 ? 2 : 4;
    vf sum[sets][T];
#pragma GCC unroll 32
    for (int j = 0; j < T; j++) {
        sum[0][j] = load(sums + j * W);
#pragma GCC unroll 4
        for (int set = 1; set < sets; set++) sum[set][j] = vf{};
    }
    const auto add = [&](vf(&to)[T], float value, uint64_t offset) __attribute__((always_inline)) {
        const vf weight = splat(value);
        const float* source = reinterpret_cast<const float*>(tile + offset * sizeof(vf));
#pragma GCC unroll 32
        for (int j = 0; j < T; j++) to[j] += weight * load(source + j * W);
    };
    int i = 0;
    for (; i + 4 <= count; i += 4) {
        uint64_t four;  // offsets at one load
        std::memcpy(&four, offsets + i, sizeof four);
        add(sum[0], values[i], four & 0xffff);
        add(sum[1 % sets], values[i + 1], four >> 16 & 0xffff);
        add(sum[2 % sets], values[i + 2], four >> 32 & 0xffff);
        add(sum[3 % sets], values[i + 3], four >> 48);
    }
    for (; i < count; i++) add(sum[0], values[i], offsets[i]);
#pragma GCC unroll 32
    for (int j = 0; j < T; j++) {
        vf total = sum[0][j];
        if constexpr (sets > 1) total += sum[1][j];
        if constexpr (sets > 2) total += sum[2][j] + sum[3][j];
        store(sums + j * W, total);
    }
}

template <int T> void fill(float value, float* sums) {
#pragma GCC unroll 32
    for (int j = 0; j < T; j++) store(sums + j * W, splat(value));
}

// Y of one filter: residual added, negative ones dropped.
void finish(const Job& job, int k, int p, int first, const float* sums) {
    const Cut& cut = job.cut;
    const int height = least(cut.height, cut.rows - p);
    for (int i = 0; i < height; i++, sums += cut.width * W) {
        for (int j = 0; j < cut.width; j++) {
            const int at = (first + j) * W, lanes = least(W, cut.length - at);
            if (lanes <= 0) break;
            const int64_t to = (int64_t(k) * cut.rows + p + i) * cut.length + at;
            vf y = load(sums + j * W);
            if (job.residual) y += load_first(job.residual + to, lanes);
            if (job.relu) y = y > vf{} ? y : (y != y ? y : vf{});  // a NaN stays
            store_first(job.y + to, y, lanes);
        }
    }
}

// Filters [k0, k1) of the tile at row p and vector `first`.
template <int T>
void run_tile(const Job& job, int p, int first, int k0, int k1, float* tile, float* partial) {
    const Cut& cut = job.cut;
    for (int block = 0; block < cut.blocks; block++) {
        pack(job, block, p, first, tile);
        const int32_t* starts = job.starts + int64_t(block) * cut.shape.k;
        float* sums = partial;
        for (int k = k0; k < k1; k++, sums += T * W) {
            if (block == 0) fill<T>(job.bias[k], sums);
            const int32_t start = starts[k];
            add_list<T>(job.values + start, job.offsets + start, starts[k + 1] - start,
                        reinterpret_cast<const char*>(tile), sums);
            if (block + 1 == cut.blocks) finish(job, k, p, first, sums);
        }
    }
}

using TileRunner = void (*)(const Job&, int, int, int, int, float*, float*);

template <int... I> TileRunner runner_of(int vectors, std::integer_sequence<int, I...>) {
    static constexpr TileRunner runners[] = {run_tile<I + 1>...};
    return runners[vectors - 1];
}

int64_t tile_floats(const Cut& cut) { return int64_t(cut.block) * cut.channel_vectors * W; }
int64_t own_floats(const Cut& cut) { return tile_floats(cut) + int64_t(cut.shape.k) * cut.vectors() * W; }

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
               const float* bias, const float* residual, bool relu, float* y, float* workspace, int threads) {
    const Cut cut = best_cut(shape);
    Buffer<int32_t> places(size_t(cut.copies) * cut.tiles_w() * cut.width * W);
    find_places(cut, places.data);
    const Job job{cut, x, starts, values, offsets, bias, residual, relu, y, places.data};
    const TileRunner run_one = runner_of(cut.vectors(), std::make_integer_sequence<int, most_vectors>());
    const int filters = cut.shape.k;
    const int64_t all = int64_t(cut.tiles()) * filters;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int thread = 0; thread < threads; thread++) {
        float* own = workspace + thread * own_floats(cut);
        int64_t at = thread * all / threads;
        const int64_t end = (thread + 1) * all / threads;
        while (at < end) {
            const int tile = int(at / filters), k0 = int(at % filters);
            const int k1 = end - at < filters - k0 ? k0 + int(end - at) : filters;
            run_one(job, tile / cut.tiles_w() * cut.height, tile % cut.tiles_w() * cut.width, k0, k1, own,
                    own + tile_floats(cut));
            at += k1 - k0;
        }
    }
}

}  // namespace torchswat::SWAT_ISA
