// Between torch's layouts and the engine's: samples innermost.
//
//     NCHW          [N][C*H*W]        one transposition,     N x CHW
//     channels_last [N][H*W][C]       one for each position, N x C
//     inner         [C][H*W][N]
//
// A tile of W x W floats is turned in registers: W loads, W log2(W) interleavings, W stores; whole lines of the
// cache are read and written on AVX-512. Bytes: 4 read and 4 written an entry (and 4 more read by the cache for what
// is written): bandwidth bound. What is left at the edges goes entry by entry.
#include "kernels.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {
namespace {

// The first (or second) halves of a and b, interleaved.
vf interleave(vf a, vf b, int half) {
    vi from{};
    for (int lane = 0; lane < W; ++lane) from[lane] = half * W / 2 + lane / 2 + (lane % 2) * W;
    return __builtin_shuffle(a, b, from);
}

// log2(W) perfect shuffles of the W*W entries: each moves the row index one bit towards the column's place.
void transpose_tile(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    vf rows[W], turned[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = loadu(from + i * from_stride);
#pragma GCC unroll 4
    for (int step = 1; step < W; step *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < W / 2; ++i) {
            turned[2 * i] = interleave(rows[i], rows[i + W / 2], 0);
            turned[2 * i + 1] = interleave(rows[i], rows[i + W / 2], 1);
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) rows[i] = turned[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) storeu(to + i * to_stride, rows[i]);
}

// to[column][row] = from[row][column] for rows x columns entries.
void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t columns) {
    const int64_t whole_rows = rows / W * W, whole_columns = columns / W * W;
    for (int64_t row = 0; row < whole_rows; row += W)
        for (int64_t column = 0; column < whole_columns; column += W)
            transpose_tile(from + row * from_stride + column, from_stride, to + column * to_stride + row, to_stride);
    for (int64_t column = 0; column < columns; ++column)
        for (int64_t row = column < whole_columns ? whole_rows : 0; row < rows; ++row)
            to[column * to_stride + row] = from[row * from_stride + column];
}

// One large transposition, cut along `cut` so that the lines of one block stay in the cache.
constexpr int64_t block = 64;

}  // namespace

void nchw_to_inner(const float* nchw, float* inner, int64_t n, int64_t c, int64_t h, int64_t w, int threads) {
    const int64_t size = c * h * w;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t begin = 0; begin < size; begin += block)
        transpose(nchw + begin, size, inner + begin * n, n, n, least(block, size - begin));
}

void inner_to_nchw(const float* inner, float* nchw, int64_t n, int64_t c, int64_t h, int64_t w, int threads) {
    const int64_t size = c * h * w;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t begin = 0; begin < size; begin += block)
        transpose(inner + begin * n, n, nchw + begin, size, least(block, size - begin), n);
}

void channels_last_to_inner(const float* nhwc, float* inner, int64_t n, int64_t c, int64_t h, int64_t w, int threads) {
    const int64_t area = h * w;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t place = 0; place < area; ++place)
        transpose(nhwc + place * c, area * c, inner + place * n, area * n, n, c);
}

void inner_to_channels_last(const float* inner, float* nhwc, int64_t n, int64_t c, int64_t h, int64_t w, int threads) {
    const int64_t area = h * w;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t place = 0; place < area; ++place)
        transpose(inner + place * n, area * n, nhwc + place * c, area * c, c, n);
}

}  // namespace torchswat::SWAT_ISA
