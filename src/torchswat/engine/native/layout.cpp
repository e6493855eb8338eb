// Between torch's layouts and the CHWN layout of the engine.
//
//     NCHW          [N][C*H*W]        one transposition,     N x CHW
//     channels_last [N][H*W][C]       one for each position, N x C
//     CHWN          [C][H*W][N]
//
// A tile whose rows are one register each is turned in registers: W x W floats, or 2W x 2W bfloat16. The tiles that fill
// a line of the cache follow each other, so that large results can be streamed past it, and while they are turned the
// lines of those below them are fetched. At the edges tiles overlap. Bytes an entry: its own read and written (and read
// once more where the result is not streamed): bandwidth bound.
#include "bfloat16.h"
#include "kernels.h"
#include "mask.h"
#include "transpose.h"

namespace torchswat::SWAT_ISA {
namespace {

template <class Entry> constexpr int64_t side = 4 * W / sizeof(Entry);  // of a tile
template <class Entry> constexpr int64_t line = 64 / sizeof(Entry);     // entries in a line of the cache

// A matrix in memory: where it begins, and the distance between its rows.
template <class Entry> struct Rows {
    Entry* data;
    int64_t stride;

    Entry* at(int64_t row, int64_t column) const { return data + row * stride + column; }
    Rows from(int64_t row, int64_t column) const { return {at(row, column), stride}; }
};

template <bool streaming, class Entry> void transpose_tile(Rows<const Entry> from, Rows<Entry> to) {
    constexpr int size = side<Entry>;
    vf rows[size];
#pragma GCC unroll 32
    for (int i = 0; i < size; ++i) rows[i] = raw_at(from.at(i, 0));
    transpose(rows);
#pragma GCC unroll 32
    for (int i = 0; i < size; ++i) put_raw<streaming>(to.at(i, 0), rows[i]);
}

// Copies less than a register: halves of it, halves of these, and so on.
template <int bytes> void copy_some(char* to, const char* from, int64_t count) {
    if (count & bytes) std::memcpy(to, from, bytes);
    if constexpr (bytes > 2) copy_some<bytes / 2>(to + (count & bytes), from + (count & bytes), count);
}
template <class Entry> void copy_row(Entry* to, const Entry* from, int64_t entries) {
    if (entries == side<Entry>) return put_raw<false>(to, raw_at(from));
    copy_some<2 * W>(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), entries * sizeof(Entry));
}

// A tile of which there are some rows and columns only.
template <class Entry> void transpose_some(Rows<const Entry> from, Rows<Entry> to, int64_t rows, int64_t columns) {
    vf tile[side<Entry>] = {};
    for (int64_t row = 0; row < rows; ++row) copy_row(reinterpret_cast<Entry*>(tile + row), from.at(row, 0), columns);
    transpose(tile);
    for (int64_t column = 0; column < columns; ++column)
        copy_row(to.at(column, 0), reinterpret_cast<const Entry*>(tile + column), rows);
}

// A matrix with fewer rows or columns than a tile: tiles that are partly empty or, if they mostly were, by entries.
template <class Entry> void transpose_thin(Rows<const Entry> from, Rows<Entry> to, int64_t rows, int64_t columns) {
    constexpr int64_t size = side<Entry>;
    if (4 * least(rows, size) * least(columns, size) < size * size) {
        for (int64_t column = 0; column < columns; ++column)
            for (int64_t row = 0; row < rows; ++row) *to.at(column, row) = *from.at(row, column);
        return;
    }
    for (int64_t row = 0; row < rows; row += size)
        for (int64_t column = 0; column < columns; column += size)
            transpose_some(from.from(row, column), to.from(column, row), least(size, rows - row),
                           least(size, columns - column));
}

// to[column][row] = from[row][column] for rows x columns entries; `next` is the matrix that is turned after this one.
template <bool streaming, class Entry>
void transpose_matrix(Rows<const Entry> from, Rows<Entry> to, int64_t rows, int64_t columns, Rows<const Entry> next) {
    constexpr int64_t size = side<Entry>, fill = line<Entry>;
    if (rows < size || columns < size) return transpose_thin(from, to, rows, columns);
    const auto tile = [&](int64_t row, int64_t column) {
        transpose_tile<streaming>(from.from(row, column), to.from(column, row));
    };
    const auto band = [&](int64_t top, int64_t bottom) {
        const auto ahead = bottom + fill <= rows ? from.from(bottom, 0) : next;
        for (int64_t column = 0; column + size <= columns; column += size) {
            if (column % fill == 0)
                for (int64_t row = 0; row < fill; ++row) __builtin_prefetch(ahead.at(row, column), 0, 2);
            for (int64_t row = top; row + size <= bottom; row += size) tile(row, column);
        }
        if (columns % size)  // overlaps what is to its left
            for (int64_t row = top; row + size <= bottom; row += size) tile(row, columns - size);
    };
    const int64_t whole = rows / fill * fill;
    for (int64_t top = 0; top < whole; top += fill) band(top, top + fill);
    if (rows - whole >= size) band(whole, rows);
    if (rows % size) band(rows - size, rows);  // overlaps what is above
}

// `parts` transpositions, each from and to a place that is a fixed step further on, shared by the threads.
template <bool streaming, class Entry>
void transpose_parts(Rows<const Entry> from, int64_t from_step, Rows<Entry> to, int64_t to_step, int64_t rows,
                     int64_t columns, int64_t parts, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static) nowait
        for (int64_t part = 0; part < parts; ++part)
            transpose_matrix<streaming>(from.from(0, part * from_step), to.from(0, part * to_step), rows, columns,
                                        from.from(0, (part + 1) * from_step));
        settle<streaming>();
    }
}

// Streams only where a vector is a line: of half lines, with others in between, each would be flushed alone.
template <class Entry>
void transpose_all(Rows<const Entry> from, int64_t from_step, Rows<Entry> to, int64_t to_step, int64_t rows,
                   int64_t columns, int64_t parts, int threads) {
    constexpr int64_t size = side<Entry>;
    const bool aligned = to.stride % size == 0 && to_step % size == 0;
    const bool streaming = size == line<Entry> && aligned && worth_streaming(to.data, rows * columns * parts, size);
    const auto run = streaming ? transpose_parts<true, Entry> : transpose_parts<false, Entry>;
    run(from, from_step, to, to_step, rows, columns, parts, threads);
}

// A large transposition is cut along the long side into parts whose lines stay in the cache.
template <class Entry> constexpr int64_t block = 4 * line<Entry>;

}  // namespace

// `stride` is from sample to sample: c*h*w, or more where the channels are a part of some.
template <class Entry>
void nchw_to_chwn(const Entry* nchw, int64_t stride, Entry* chwn, int64_t n, int64_t c, int64_t h, int64_t w,
                  int threads) {
    constexpr int64_t step = block<Entry>;
    const int64_t size = c * h * w, done = size / step * step;
    const Rows<const Entry> from{nchw, stride};
    const Rows<Entry> to{chwn, n};
    transpose_all(from, step, to, step * n, n, step, size / step, threads);
    transpose_matrix<false>(from.from(0, done), to.from(done, 0), n, size - done, from);
}

template <class Entry>
void chwn_to_nchw(const Entry* chwn, Entry* nchw, int64_t n, int64_t c, int64_t h, int64_t w, int threads) {
    constexpr int64_t step = block<Entry>;
    const int64_t size = c * h * w, done = size / step * step;
    const Rows<const Entry> from{chwn, n};
    const Rows<Entry> to{nchw, size};
    transpose_all(from, step * n, to, step, step, n, size / step, threads);
    transpose_matrix<false>(from.from(done, 0), to.from(0, done), size - done, n, from);
}

// `stride` is from position to position: c, or more where the channels are a part of some.
template <class Entry>
void channels_last_to_chwn(const Entry* nhwc, int64_t stride, Entry* chwn, int64_t n, int64_t c, int64_t h, int64_t w,
                           int threads) {
    const int64_t area = h * w;
    transpose_all(Rows<const Entry>{nhwc, area * stride}, stride, Rows<Entry>{chwn, area * n}, n, n, c, area, threads);
}

template <class Entry>
void chwn_to_channels_last(const Entry* chwn, Entry* nhwc, int64_t n, int64_t c, int64_t h, int64_t w, int threads) {
    const int64_t area = h * w;
    transpose_all(Rows<const Entry>{chwn, area * n}, n, Rows<Entry>{nhwc, area * c}, c, c, n, area, threads);
}

SWAT_LAYOUT(SWAT_INSTANTIATE, float, )
SWAT_LAYOUT(SWAT_INSTANTIATE, bf16, )

}  // namespace torchswat::SWAT_ISA
