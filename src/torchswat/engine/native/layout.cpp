// Between torch's layouts and the CHWN layout of the engine.
//
//     NCHW          [N][C*H*W]        one transposition,     N x CHW
//     channels_last [N][H*W][C]       one for each position, N x C
//     CHWN          [C][H*W][N]
//
// A tile of W x W floats is turned in registers: W loads, W log2(W) shuffles, W stores; the tiles that fill a line of
// the cache follow each other, so that large results can be streamed past it. Bytes: 4 read and 4 written an entry
// (and 4 more read where the result is not streamed): bandwidth bound. What is left at the edges goes entry by entry.
#include "kernels.h"
#include "stream.h"
#include "transpose.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t line = 16;  // floats in a line of the cache

// A matrix in memory: where it begins, and the distance between its rows.
struct From {
    const float* data;
    int64_t stride;
};
struct To {
    float* data;
    int64_t stride;
};

template <bool streaming> void transpose_tile(From from, To to) {
    vf rows[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = loadu(from.data + i * from.stride);
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) put<streaming>(to.data + i * to.stride, rows[i]);
}

// to[column][row] = from[row][column] for rows x columns entries.
template <bool streaming> void transpose_matrix(From from, To to, int64_t rows, int64_t columns) {
    const int64_t whole_rows = rows / W * W, whole_columns = columns / W * W;
    for (int64_t first = 0; first < whole_rows; first += line)
        for (int64_t column = 0; column < whole_columns; column += W)
            for (int64_t row = first; row < first + line && row < whole_rows; row += W)
                transpose_tile<streaming>({from.data + row * from.stride + column, from.stride},
                                          {to.data + column * to.stride + row, to.stride});
    for (int64_t column = 0; column < columns; ++column)
        for (int64_t row = column < whole_columns ? whole_rows : 0; row < rows; ++row)
            to.data[column * to.stride + row] = from.data[row * from.stride + column];
}

// `parts` transpositions, each from and to a place that is a fixed step further on, shared by the threads.
template <bool streaming>
void transpose_parts(From from, int64_t from_step, To to, int64_t to_step, int64_t rows, int64_t columns,
                     int64_t parts, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static) nowait
        for (int64_t part = 0; part < parts; ++part)
            transpose_matrix<streaming>({from.data + part * from_step, from.stride},
                                        {to.data + part * to_step, to.stride}, rows, columns);
        settle<streaming>();
    }
}

// Streams only where a vector is a line: of half lines, with others in between, each would be flushed alone.
void transpose_all(From from, int64_t from_step, To to, int64_t to_step, int64_t rows, int64_t columns, int64_t parts,
                   int threads) {
    const bool aligned = to.stride % W == 0 && to_step % W == 0;
    const bool streaming = W == line && aligned && worth_streaming(to.data, rows * columns * parts, W);
    const auto run = streaming ? transpose_parts<true> : transpose_parts<false>;
    run(from, from_step, to, to_step, rows, columns, parts, threads);
}

// A large transposition is cut along the long side into parts whose lines stay in the cache.
constexpr int64_t block = 64;

}  // namespace

// `stride` is from sample to sample: c*h*w, or more where the channels are a part of some.
void nchw_to_chwn(const float* nchw, int64_t stride, float* chwn, int64_t n, int64_t c, int64_t h, int64_t w,
                   int threads) {
    const int64_t size = c * h * w, whole = size / block;
    transpose_all({nchw, stride}, block, {chwn, n}, block * n, n, block, whole, threads);
    const int64_t done = whole * block;
    transpose_matrix<false>({nchw + done, stride}, {chwn + done * n, n}, n, size - done);
}

void chwn_to_nchw(const float* chwn, float* nchw, int64_t n, int64_t c, int64_t h, int64_t w, int threads) {
    const int64_t size = c * h * w, whole = size / block;
    transpose_all({chwn, n}, block * n, {nchw, size}, block, block, n, whole, threads);
    const int64_t done = whole * block;
    transpose_matrix<false>({chwn + done * n, n}, {nchw + done, size}, size - done, n);
}

// `stride` is from position to position: c, or more where the channels are a part of some.
void channels_last_to_chwn(const float* nhwc, int64_t stride, float* chwn, int64_t n, int64_t c, int64_t h, int64_t w,
                            int threads) {
    const int64_t area = h * w;
    transpose_all({nhwc, area * stride}, stride, {chwn, area * n}, n, n, c, area, threads);
}

void chwn_to_channels_last(const float* chwn, float* nhwc, int64_t n, int64_t c, int64_t h, int64_t w, int threads) {
    const int64_t area = h * w;
    transpose_all({chwn, area * n}, n, {nhwc, area * c}, c, c, n, area, threads);
}

}  // namespace torchswat::SWAT_ISA
