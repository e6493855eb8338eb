// How a map is cut for the weight gradient: what stays in L1, what in L2, and where everything lies.
//
// The output gradient is packed with the filters innermost, in positions of `cell` floats, with the zeros that taps
// beyond its edge meet. A *slab* is what one list of kept activations runs over; its packed positions stay in L1:
//
//     small maps: several samples                   large maps: a run of positions of one sample, and its halo
//
//       0 0 0 0 0                                      . . . . . . . . .
//       0 a b c d       the zeros right of a row       . x x x x x x x x   x: halo, positions of other runs
//       0 e f g h       are those left of the next,    x x p p p p p p p
//       0 i j k l       those below a sample are       p p p p p p p p p   p: the run; it begins and ends
//       0 0 0 0 0       those above the next           p p p p p p x x x      with words of bits (16 positions)
//       0 m n o p                                      x x x x x x x . .
//       ...                                            . . . . . . . . .
//
// A *band* is the slabs of 16 or 32 samples over some runs. It is packed at once, in whole cache lines of the
// gradient (which has its samples innermost), and stays in L2.
#pragma once
#include "activations.h"
#include "kernels.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t slab_bytes = 40 * 1024;  // of the L1 data cache
constexpr int64_t band_bytes = 640 * 1024;  // of the L2 cache: beyond half of 1 MB, 16 % slower on an AMD Zen 5
constexpr int64_t small_map = 64;           // positions
constexpr int most_accumulators = registers >= 32 ? 28 : 14;
constexpr int most_taps = 3;  // of a window, along each axis: 3 x 3 accumulators and more

// One axis of the map: x + pad = stride * (first + at) + class for an input coordinate x. A tap j of x's class falls
// on packed coordinate at + taps - 1 - j.
struct Axis {
    int stride, pad, kernel, out, first, last, taps, classes, before, after, size;

    Axis(int in, int kernel, int stride, int pad, int out)
        : stride(stride), pad(pad), kernel(kernel), out(out), first(pad / stride), last((in - 1 + pad) / stride),
          taps(int(ceil_div(kernel, stride))), classes(int(smaller(kernel, stride))), size(last - first + taps) {
        before = int(smaller(size, larger(0, taps - 1 - first)));  // zeros before the first output
        after = int(smaller(size, larger(0, last + 1 - out)));     // and after the last
    }
    int class_of(int x) const { return (x + pad) % stride; }  // `classes` and above meet no tap
    int taps_of(int a) const { return int(ceil_div(kernel - a, stride)); }
    int at(int x) const { return (x + pad) / stride - first; }
    int output(int packed) const { return packed + first - taps + 1; }  // a zero if not in 0..out-1
    int shared() const { return before < after ? before : after; }
};

struct Plan {
    Axis rows, columns;
    int classes;            // of entries, by what taps they meet
    int vectors;            // F: vectors of filters in a block
    int64_t cell;           // floats of one packed position
    int64_t width, area;    // of the input map
    int64_t words;          // of bits, of 16 positions
    int64_t pitch;          // packed positions from row to row
    int64_t sample;         // packed positions from sample to sample
    int64_t samples;        // of a slab: 1 where the map is cut
    int64_t run, runs;      // positions of a slab's map (a multiple of 16), and how many runs make a map
    int64_t band;           // runs of a band
    int64_t block, blocks;  // samples of a band, and bands along the samples
    int64_t parts;          // slabs of a band's run

    explicit Plan(const ConvShape& s);
    void cut(int64_t room);
    int64_t slabs() const { return blocks * runs * parts; }
    int64_t slab(int64_t b, int64_t r, int64_t part) const { return (b * runs + r) * parts + part; }
    int64_t shared_rows() const { return runs == 1 ? rows.shared() : 0; }  // of successive samples
    int64_t band_positions() const { return block * sample + (shared_rows() + 1) * pitch + columns.size; }

    int first_row(int64_t r) const { return rows.at(int(r * run / width)); }
    // Packed rows of runs first..last-1, those of the halo included.
    int64_t rows_of(int64_t first, int64_t last) const {
        return rows.at(int((smaller(area, last * run) - 1) / width)) - first_row(first) + rows.taps;
    }
    // Where the window of position p begins, counted from row `row`.
    int64_t packed_at(int64_t p, int row) const {
        return (rows.at(int(p / width)) - row) * pitch + columns.at(int(p % width));
    }
    // The same of the position that run r's offsets are counted from: no window of the run begins before it (with a
    // stride, the next row of the input may begin in the same packed row).
    int64_t packed_run(int64_t r, int row) const {
        return rows.stride == 1 ? packed_at(r * run, row) : (first_row(r) - row) * pitch;
    }
};

// Enough accumulators to hide the latency; more vectors than that only make the lists of a slab shorter, which pays on
// small maps alone (3 to 5 % there).
static inline int choose_vectors(const ConvShape& s) {
    const int64_t rows = smaller(most_taps, ceil_div(s.r, s.stride_h));
    const int64_t taps = rows * smaller(most_taps, ceil_div(s.s, s.stride_w));
    const bool small = int64_t(s.h) * s.w <= small_map && 2 * taps <= most_accumulators;
    int vectors = taps == 1 ? 4 : taps <= 4 || small ? 2 : 1;
    while (vectors > 1 && s.k <= vectors / 2 * W) vectors /= 2;
    return vectors;
}

inline Plan::Plan(const ConvShape& s)
    : rows(s.h, s.r, s.stride_h, s.pad_h, s.out_h), columns(s.w, s.s, s.stride_w, s.pad_w, s.out_w),
      classes(rows.classes * columns.classes), vectors(choose_vectors(s)), cell(vectors * W), width(s.w),
      area(int64_t(s.h) * s.w), words(units(area)), pitch(columns.size - columns.shared()), run(words * unit),
      runs(1), band(1), block(s.n > 16 ? 32 : 16) {
    const int64_t room = slab_bytes / int64_t(cell * sizeof(float));  // packed positions of a slab
    const int64_t row_bytes = pitch * cell * int64_t(sizeof(float));
    const int64_t whole = (rows.size - rows.shared()) * pitch;
    if (whole <= room) {
        const int64_t most = smaller(block, s.n);
        sample = whole;
        parts = ceil_div(most, smaller(most, room / whole));
        samples = ceil_div(most, parts);
    } else {
        cut(room);
        const auto rows_of_bands = [&] {
            int64_t most = 0;
            for (int64_t r = 0; r < runs; r += band) most = larger(most, rows_of(r, smaller(runs, r + band)));
            return most;
        };
        if (rows_of_bands() * row_bytes * block > band_bytes) block = 16;
        while (band < runs) {
            ++band;
            if (rows_of_bands() * row_bytes * block <= band_bytes) continue;
            --band;
            break;
        }
        sample = rows_of_bands() * pitch;
        samples = 1;
        parts = smaller(block, s.n);
    }
    blocks = ceil_div(s.n, block);
}

// Chooses the longest run that fits with its halo, then runs as equal as words of bits allow.
inline void Plan::cut(int64_t room) {
    const auto fits = [&](int64_t positions) {
        const int64_t in_row = columns.size - columns.taps + 1;  // packed positions that entries of a row begin at
        const int64_t own = ceil_div(positions * in_row, width * (positions > width ? rows.stride : 1));
        return own + (rows.taps - 1) * smaller(pitch, own + columns.taps) <= room;
    };
    int64_t most = 1;
    while (most < words && fits((most + 1) * unit)) ++most;
    run = ceil_div(words, ceil_div(words, most)) * unit;
    runs = ceil_div(words * unit, run);
}

}  // namespace torchswat::SWAT_ISA
