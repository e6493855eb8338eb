// Weight gradient of a convolution from sparse activations and a dense output gradient, into a dense gradient:
//
//     dW[k][c][r][s] = sum over n,p,q of dY(k, p, q, n) * X(c, p*stride + r - pad, q*stride + s - pad, n)
//
// Every kept activation x meets R*S output positions, and at each of them all filters: with the filters innermost
// that is R*S vectors of dY, multiplied with x and added to R*S accumulators that stay in registers while one
// channel's list of kept entries is walked through.
//
//     dY packed     [sample][row][column][F*W filters]   zeros where a tap would fall outside of the map
//
//        column  0   1   2   3        x at (h, w) meets the R x S window that begins at its own
//              +---+---+---+---+      position, so one 16-bit offset addresses all of it; the taps
//       row 0  | 0 | 0 | 0 | 0 |      are constants of the load. The zeros right of a row are the
//              +---+###########+      zeros left of the next one, those below a sample are those
//           1  | 0 |# a | b | c#      above the next one.
//              +---+#--+---+---#
//           2  | 0 |# d | x | f#      Strided: h + pad = stride * hh + a, and tap r = a + stride * j
//              +---+###########+      falls on output row hh - j: entries of the same (a, b) share a
//                                     dense window of ceil((R-a)/stride) x ceil((S-b)/stride) taps.
//
// A *slab* stays in L1: some samples, or a run of positions of one sample, with its halo. A *band* is the slabs of 16
// or 32 samples over some runs; it is packed at once (whole cache lines of dY) and stays in L2 (slabs.h). Loops:
//
//     threads: filters, and channels where filters are few    (no reduction: results do not depend on their number)
//       groups of filter blocks whose accumulators fit L2
//         bands > filter blocks: pack dY > slabs > channels > kept entries
//
// Operations: density * N*H*W*C*K*R*S multiply-adds. Loads an entry: R*S*F vectors, one value, one offset. Bytes:
// dY once; values (4 each) and offsets (2 each, made here from the bits) once for every band and group; the
// accumulators are loaded and stored once per (slab, channel), which is what short lists pay for.
#include "bfloat16.h"
#include "entries.h"
#include "kernels.h"
#include "slabs.h"
#include "transpose.h"

namespace torchswat::SWAT_ISA {

namespace {

constexpr int64_t group_bytes = 600 * 1024;  // of the L2 cache, for accumulators

// Packs a band, that of the samples, runs and filters that begin at n0, r and k0.
void pack(const ConvShape& s, const Plan& p, const float* grad, int64_t n0, int64_t r, int64_t k0, float* packed) {
    const int64_t count = smaller(p.block, s.n - n0), map = s.output_map();
    const int64_t all_rows = p.rows_of(r, smaller(p.runs, r + p.band)), own_rows = all_rows - p.shared_rows();
    const int first = p.first_row(r);
    const int64_t ahead = 5 * int64_t(s.n);  // positions that are asked for before their turn
    const auto zero = [&](int64_t at, int64_t positions) {
        std::memset(packed + at * p.cell, 0, sizeof(float) * positions * p.cell);
    };
    for (int64_t row = 0; row < own_rows; ++row) {
        const int out_row = p.rows.output(int(first + row));
        const bool inside = out_row >= 0 && out_row < s.out_h;
        // Columns begin..end-1 hold outputs.
        int64_t begin = p.columns.before, end = smaller(p.pitch, s.out_w - p.columns.output(0));
        if (!inside || end < begin) begin = end = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = i * p.sample + row * p.pitch;
            if (begin) zero(at, begin);
            if (end < p.pitch) zero(at + end, p.pitch - end);
        }
        for (int64_t column = begin; column < end; ++column) {
            const int64_t position = int64_t(out_row) * s.out_w + p.columns.output(int(column));
            const float* from = grad + k0 * map + position * s.n + n0;
            float* to = packed + (row * p.pitch + column) * p.cell;
            for (int64_t v = 0; v < p.vectors; ++v)
                for (int64_t i = 0; i < count; i += W) {
                    const int lanes = int(smaller(W, count - i));
                    const int64_t filters = smaller(W, s.k - k0 - v * W);
                    vf tile[W];
                    if (filters == W && lanes == W) {
#pragma GCC unroll 16
                        for (int j = 0; j < W; ++j) {
                            const float* line = from + (v * W + j) * map + i;
                            __builtin_prefetch(line + ahead);
                            tile[j] = loadu(line);
                        }
                    } else {
                        for (int j = 0; j < W; ++j)
                            tile[j] = j < filters ? load_first(from + (v * W + j) * map + i, lanes) : vf{};
                    }
                    transpose(tile);
                    if (lanes == W) {
#pragma GCC unroll 16
                        for (int j = 0; j < W; ++j) store(to + (i + j) * p.sample * p.cell + v * W, tile[j]);
                    } else {
                        for (int j = 0; j < lanes; ++j) store(to + (i + j) * p.sample * p.cell + v * W, tile[j]);
                    }
                }
        }
    }
    for (int64_t i = 0; i < count; ++i)  // what the next sample does not supply
        if (i == count - 1 || own_rows * p.pitch < p.sample)
            zero(i * p.sample + own_rows * p.pitch, p.shared_rows() * p.pitch + p.columns.size - p.pitch);
}

// ----------------------------------------------------------------------------------------- micro-kernels

// One slab, one window of taps, some channels.
struct Work {
    const float* packed;  // of the window of an entry with offset 0
    int64_t row;          // floats from row to row of it
    Entries entries;      // lists: those of this slab and class
    int64_t begin, end;   // channels
    float* sums;          // of channel `begin` and the window's first tap
    int64_t channel, tap_row, tap_column;  // floats from one to the next in `sums`; taps run backwards
};

template <class M, int R, int C, int F> void multiply(const Work& work) {
    constexpr int sets = R * C * F >= 8 ? 1 : R * C * F >= 4 ? 2 : 4;  // enough chains to hide the latency
    const char* packed = reinterpret_cast<const char*>(work.packed);
    const int64_t row = work.row * sizeof(float);
    float* sums = work.sums;
    for (int64_t c = work.begin; c < work.end; ++c, sums += work.channel) {
        const List list = work.entries.lists[c];
        if (!list.count) continue;
        const float* values = work.entries.values + list.begin;
        const uint16_t* offsets = work.entries.offsets + list.begin;
        vf sum[sets][R][C][F];
#pragma GCC unroll 4
        for (int i = 0; i < sets; ++i)
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int s = 0; s < C; ++s)
#pragma GCC unroll 8
                    for (int f = 0; f < F; ++f)
                        sum[i][r][s][f] = i ? vf{} : load(sums + r * work.tap_row + s * work.tap_column + f * W);

        const auto add = [&](int i, float value, uint64_t offset) {
            const char* window = packed + 8 * offset;
            const vf x = M::spread(value);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                if (r) window += row;
                asm("" : "+r"(window));  // keeps every tap at a constant distance from its row's pointer
#pragma GCC unroll 4
                for (int s = 0; s < C; ++s)
#pragma GCC unroll 8
                    for (int f = 0; f < F; ++f)
                        sum[i][r][s][f] = M::add(sum[i][r][s][f], x,
                                                 load(reinterpret_cast<const float*>(window) + (s * F + f) * W));
            }
        };
        const List next = work.entries.lists[c + 1];  // its lines are asked for while this one is worked on
        const float* next_values = work.entries.values + next.begin;
        const uint16_t* next_offsets = work.entries.offsets + next.begin;
        int64_t e = 0;
        for (; e + 4 <= list.count; e += 4) {
            uint64_t four;
            std::memcpy(&four, offsets + e, 8);
            __builtin_prefetch(next_values + e);
            __builtin_prefetch(next_offsets + e);
            add(0, values[e], four & 0xffff);
            add(1 % sets, values[e + 1], four >> 16 & 0xffff);
            add(2 % sets, values[e + 2], four >> 32 & 0xffff);
            add(3 % sets, values[e + 3], four >> 48);
        }
        for (; e < list.count; ++e) add(0, values[e], offsets[e]);

#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int s = 0; s < C; ++s)
#pragma GCC unroll 8
                for (int f = 0; f < F; ++f) {
                    vf total = sum[0][r][s][f];
#pragma GCC unroll 4
                    for (int i = 1; i < sets; ++i) total += sum[i][r][s][f];
                    store(sums + r * work.tap_row + s * work.tap_column + f * W, total);
                }
    }
}

using Multiply = void (*)(const Work&);

template <class M, int R, int C, int F> constexpr Multiply multiply_if() {
    if constexpr (R * C * F <= most_accumulators) return &multiply<M, R, C, F>;
    else return nullptr;
}

template <class M, int F> Multiply choose_columns(int64_t rows, int64_t columns) {
    static constexpr Multiply table[3][3] = {
        {multiply_if<M, 1, 1, F>(), multiply_if<M, 1, 2, F>(), multiply_if<M, 1, 3, F>()},
        {multiply_if<M, 2, 1, F>(), multiply_if<M, 2, 2, F>(), multiply_if<M, 2, 3, F>()},
        {multiply_if<M, 3, 1, F>(), multiply_if<M, 3, 2, F>(), multiply_if<M, 3, 3, F>()}};
    return table[rows - 1][columns - 1];
}

template <class M> Multiply choose_multiply(int vectors, int64_t rows, int64_t columns) {
    switch (vectors) {
        case 1: return choose_columns<M, 1>(rows, columns);
        case 2: return choose_columns<M, 2>(rows, columns);
        case 4: return choose_columns<M, 4>(rows, columns);
        default: return choose_columns<M, 8>(rows, columns);
    }
}

// All classes and taps of one slab, in windows of at most 3 x 3 taps.
template <class M>
void multiply_slab(const ConvShape& s, const Plan& p, const float* packed, const Entries& slab, int64_t begin,
                   int64_t end, float* sums) {
    for (int a = 0; a < p.rows.classes; ++a)
        for (int b = 0; b < p.columns.classes; ++b) {
            Entries entries = slab;
            entries.lists += (a * p.columns.classes + b) * s.c;
            const int64_t rows = p.rows.taps_of(a), columns = p.columns.taps_of(b);
            for (int64_t j = 0; j < rows; j += most_taps)
                for (int64_t i = 0; i < columns; i += most_taps) {
                    const int64_t height = smaller(most_taps, rows - j), width = smaller(most_taps, columns - i);
                    // The window's first cell in memory belongs to its last tap.
                    const int64_t tap_h = a + (j + height - 1) * s.stride_h, tap_w = b + (i + width - 1) * s.stride_w;
                    const int64_t cell = (p.rows.taps - j - height) * p.pitch + p.columns.taps - i - width;
                    const Work work{packed + cell * p.cell,
                                    p.pitch * p.cell,
                                    entries,
                                    begin,
                                    end,
                                    sums + (tap_h * s.s + tap_w) * p.cell,
                                    s.r * s.s * p.cell,
                                    -s.stride_h * s.s * p.cell,
                                    -s.stride_w * p.cell};
                    choose_multiply<M>(p.vectors, height, width)(work);
                }
        }
}

// ---------------------------------------------------------------------------------------------- threads

// sums [taps][cell] of one filter block, for channels begin..end-1, to their places in dW.
void write_block(const ConvShape& s, const Plan& p, const float* sums, int64_t k0, int64_t begin, int64_t end,
                 float* grad_weight) {
    const int64_t row = int64_t(s.c) * s.r * s.s, taps = (end - begin) * s.r * s.s;
    float* to = grad_weight + begin * s.r * s.s;
    for (int64_t v = 0; v < p.vectors; ++v)
        for (int64_t t = 0; t < taps; t += W) {
            const int lanes = int(smaller(W, taps - t));
            const int64_t filters = smaller(W, s.k - k0 - v * W);
            vf tile[W];
            for (int j = 0; j < W; ++j) tile[j] = j < lanes ? load(sums + (t + j) * p.cell + v * W) : vf{};
            transpose(tile);
            for (int64_t j = 0; j < filters; ++j) store_first(to + (k0 + v * W + j) * row + t, tile[j], lanes);
        }
}

struct Share {  // of one thread: filter blocks and channels
    int64_t first_block, last_block, begin, end;
};

// A grid of threads over filter blocks and channels: the one whose largest share is smallest, filters preferred
// because every further cut of the channels packs dY once more.
void choose_grid(int64_t filter_blocks, int64_t channels, int threads, int& over_filters, int& over_channels) {
    double best = 1e30;
    for (int f = 1; f <= threads; ++f) {
        if (threads % f) continue;
        const int c = threads / f;
        const double largest = double(ceil_div(filter_blocks, f)) * double(ceil_div(channels, c) + 8);
        if (largest <= best) best = largest, over_filters = f, over_channels = c;
    }
}

Share share_of(int thread, int over_filters, int over_channels, int64_t filter_blocks, int64_t channels) {
    const int64_t f = thread % over_filters, c = thread / over_filters;
    return {f * filter_blocks / over_filters, (f + 1) * filter_blocks / over_filters, c * channels / over_channels,
            (c + 1) * channels / over_channels};
}

template <class M>
void multiply_band(const ConvShape& s, const Plan& p, const float* packed, int64_t b, int64_t first,
                   const Share& share, const Entries& entries, float* sums) {
    const int64_t parts = ceil_div(smaller(p.block, s.n - b * p.block), p.samples);
    for (int64_t r = first; r < smaller(p.runs, first + p.band); ++r)
        for (int64_t part = 0; part < parts; ++part) {
            Entries slab = entries;
            slab.lists += p.slab(b, r, part) * p.classes * s.c;
            const int64_t at = part * p.samples * p.sample + p.packed_run(r, p.first_row(first));
            multiply_slab<M>(s, p, packed + at * p.cell, slab, share.begin, share.end, sums);
        }
}

template <class M>
void run_share(const ConvShape& s, const Plan& p, const Share& share, const Entries& entries, const float* grad,
               float* packed, float* sums, int64_t group, float* grad_weight) {
    const int64_t block_sums = (share.end - share.begin) * s.r * s.s * p.cell;
    for (int64_t first = share.first_block; first < share.last_block; first += group) {
        const int64_t last = smaller(share.last_block, first + group);
        std::memset(sums, 0, sizeof(float) * block_sums * (last - first));
        for (int64_t b = 0; b < p.blocks; ++b)
            for (int64_t r = 0; r < p.runs; r += p.band)
                for (int64_t k = first; k < last; ++k) {
                    pack(s, p, grad, b * p.block, r, k * p.cell, packed);
                    multiply_band<M>(s, p, packed, b, r, share, entries, sums + (k - first) * block_sums);
                }
        for (int64_t k = first; k < last; ++k)
            write_block(s, p, sums + (k - first) * block_sums, k * p.cell, share.begin, share.end, grad_weight);
    }
}

template <class M>
void run_all(const ConvShape& shape, const float* values, const uint16_t* bits, const int64_t* starts,
             const float* grad, float* grad_weight, int threads) {
    if (shape.dilation_h > 1 || shape.dilation_w > 1) invalid("grad_weight: there is no kernel for dilation");
    const int64_t channels = shape.c, kept = starts[channels];
    if (kept > UINT32_MAX) invalid("grad_weight: more than 4 billion kept activations");
    const Plan p(shape);
    const Positions positions(p);
    const bool strided = shape.stride_h > 1 || shape.stride_w > 1;
    const int64_t count = p.slabs() * p.classes * channels + 1;  // one more: the list after the last is asked for
    Buffer<List> lists(count);
    Buffer<uint16_t> offsets(kept);
    Buffer<float> sorted(strided ? kept : 0);
    std::memset(lists.data, 0, sizeof(List) * count);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < channels; ++c) {
        const Channel channel{c, channels, shape.n, bits + c * shape.n * p.words, starts[c], starts[c + 1]};
        if (strided) list_by_class(p, positions, channel, values, sorted.data, offsets.data, lists.data);
        else list_in_place(p, positions, channel, offsets.data, lists.data);
    }
    const Entries entries{strided ? sorted.data : values, offsets.data, lists.data};

    const int64_t filter_blocks = ceil_div(shape.k, p.cell);
    int over_filters = 1, over_channels = 1;
    choose_grid(filter_blocks, channels, threads, over_filters, over_channels);
    const int64_t block_sums = ceil_div(channels, over_channels) * shape.r * shape.s * p.cell;
    const int64_t fitting = larger(1, group_bytes / int64_t(block_sums * sizeof(float)));
    const int64_t group = smaller(ceil_div(filter_blocks, over_filters), fitting);
    const int64_t packed_floats = p.band_positions() * p.cell;
    Buffer<float> packed(threads * packed_floats), sums(threads * group * block_sums);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int t = 0; t < threads; ++t)
        run_share<M>(shape, p, share_of(t, over_filters, over_channels, filter_blocks, channels), entries, grad,
                  packed.data + t * packed_floats, sums.data + t * group * block_sums, group, grad_weight);
}

}  // namespace

// values, bits, starts: compressed activations (activations.h); grad: [k][out_h][out_w][n];
// grad_weight: [k][c][r][s].
void grad_weight(const ConvShape& shape, const float* values, const uint16_t* bits, const int64_t* starts,
                 const float* grad, float* grad_weight, int threads) {
    run_all<Singles>(shape, values, bits, starts, grad, grad_weight, threads);
}

// The same where a value is a pair of bfloat16: of two neighbouring samples, whose number is even. To all but the
// multiplication a pair is a float.
void grad_weight_pairs(const ConvShape& shape, const float* values, const uint16_t* bits, const int64_t* starts,
                       const bf16* grad, float* grad_weight, int threads) {
    if (shape.n % 2) invalid("grad_weight_pairs: the number of samples must be even.");
    ConvShape pairs = shape;
    pairs.n = shape.n / 2;
    run_all<Pairs>(pairs, values, bits, starts, reinterpret_cast<const float*>(grad), grad_weight, threads);
}

}  // namespace torchswat::SWAT_ISA
