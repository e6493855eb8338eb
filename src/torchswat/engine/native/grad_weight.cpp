// Weight gradient of a convolution from sparse activations and a dense output gradient, into a dense gradient:
//
//     dW[k][c][r][s] = sum over n,p,q of dY(k, n, p, q) * X(c, n, p*stride + r - pad, q*stride + s - pad)
//
// Every kept activation x meets R*S output positions, and at each of them all filters: with the filters innermost
// that is R*S vectors of dY, multiplied with x and added to R*S accumulators that stay in registers while one
// channel's list of kept entries is walked through.
//
//     dY packed     [sample][row][column][F*W filters]   zeros where a tap would fall outside of the map
//
//        column  0   1   2   3        x at (h, w) meets the R x S window that begins at its own
//              +---+---+---+---+      position, so one 16-bit offset addresses them all; the taps
//       row 0  | 0 | 0 | 0 | 0 |      are immediates of the load. The zeros right of a row are the
//              +---+###########+      zeros left of the next one, those below a sample are those
//           1  | 0 |# a | b | c#      above the next one.
//              +---+#--+---+---#
//           2  | 0 |# d | x | f#      stride s: (h + pad) = s*hh + a, the tap r = a + s*j falls on
//              +---+###########+      output row hh - j: s*s classes of entries by (a, b), each with
//                                     a dense window of ceil((R-a)/s) x ceil((S-b)/s) of the taps.
//
// A *slab* is what stays in L1: some samples, or a run of positions of one sample, with its halo. A *band* is the
// slabs of 16 samples over one run of positions, packed at once (whole cache lines of dY) into L2. Order of loops:
//
//     threads: filters (and channels, if filters are few)          no reduction, so no dependence on their number
//       groups of filter blocks whose accumulators fit L2
//         bands > filter blocks: pack dY > slabs > channels: the micro-kernel
//
// Operations: density * N*H*W*C*K*R*S multiply-adds. Loads per entry: R*S*F vectors, one value, one offset. Bytes:
// dY read once; values (4) and offsets (2, made here from the bits) once per band and group; accumulators loaded and
// stored once per (slab, channel), which is what short lists pay for.
#include <cstdlib>

#include "activations.h"
#include "shapes.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {

namespace {

constexpr int block = 16;                    // samples packed together: one cache line of dY
constexpr int64_t slab_bytes = 40 * 1024;    // of the L1 data cache
constexpr int64_t band_bytes = 700 * 1024;   // of the L2 cache
constexpr int64_t group_bytes = 600 * 1024;  // of the L2 cache
constexpr int most_accumulators = registers >= 32 ? 28 : 14;

struct List {  // the kept entries of one (slab, class, channel)
    uint32_t begin, count;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T> T* allocate(int64_t count) {
    return static_cast<T*>(std::aligned_alloc(4096, ceil_div(larger(count, 1) * sizeof(T), 4096) * 4096));
}

// One axis of the map: input coordinate x, with (x + pad) = stride * xx + class, xx counted from `first`.
struct Axis {
    int stride, pad, kernel, out;
    int first, last;    // xx of the first and of the last input coordinate
    int taps;           // most taps that one entry meets
    int before, after;  // zeros in the packed form before the first and after the last output

    Axis(int in, int kernel, int stride, int pad, int out)
        : stride(stride), pad(pad), kernel(kernel), out(out), first(pad / stride), last((in - 1 + pad) / stride),
          taps(int(ceil_div(kernel, stride))), before(int(larger(0, taps - 1 - first))),
          after(int(larger(0, last + 1 - out))) {}
    int class_of(int x) const { return (x + pad) % stride; }
    int at(int x) const { return (x + pad) / stride - first; }
    int taps_of(int a) const { return int(ceil_div(kernel - a, stride)); }
    int size() const { return last - first + taps; }               // packed coordinates, zeros included
    int output(int packed) const { return packed + first - taps + 1; }  // may lie outside of 0..out-1: a zero
};

// How the map is cut, and where everything lies.
struct Plan {
    Axis rows, columns;
    int64_t area, words;          // positions of a map; words of bits
    int vectors;                  // F, vectors of filters in a block
    int64_t cell;                 // floats of one packed position
    int64_t pitch;                // packed positions from row to row
    int64_t sample;               // packed positions from sample to sample of a band
    int64_t samples;              // of a slab (1 where the map is cut)
    int64_t run;                  // positions of a slab's map, a multiple of 16
    int64_t runs;                 // slabs over a map
    int64_t blocks;               // of 16 samples
    int64_t parts;                // slabs of a band
    int64_t slabs;                // in all
    int classes;
    int64_t band_positions;

    int64_t row_of(int64_t p) const { return p / (columns.width); }
};

}  // namespace

}  // namespace torchswat::SWAT_ISA
