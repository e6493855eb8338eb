// Maximum and average of windows for inference, with as many samples as there are: no winner is kept.
//
//     X [channels][h][w][n]   --largest (sum) of the rows under a window-->   line [w*n]   --of its columns-->   Y
//
// The first step runs along whole rows in vectors, whatever n is; the second along samples, on 1/stride of the data.
// 4 bytes are read once a row of windows, 4 written an output: bandwidth bound.
#include "buffer.h"
#include "kernels.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {
namespace {

int larger(int a, int b) { return a > b ? a : b; }
int smaller(int a, int b) { return a < b ? a : b; }

struct Windows {
    int h, w, n, kernel, stride, padding, rows, columns;
    bool average;

    int begin(int at) const { return larger(at * stride - padding, 0); }
    int end(int at, int size) const { return smaller(at * stride - padding + kernel, size); }
};

template <bool average> vf join(vf a, vf b) {
    if (average) return a + b;
    return (b > a) | (b != b) ? b : a;  // a NaN wins, as in torch
}

// to = join(to, from) over `length` floats.
template <bool average> void join_row(const float* from, int64_t length, float* to) {
    int64_t i = 0;
    for (; i + W <= length; i += W) storeu(to + i, join<average>(loadu(to + i), loadu(from + i)));
    if (i == length) return;
    const int lanes = int(length - i);
    store_first(to + i, join<average>(load_first(to + i, lanes), load_first(from + i, lanes)), lanes);
}

template <bool average> void pool_channel(const Windows& windows, const float* x, float* line, float* y) {
    const int64_t n = windows.n, row_floats = windows.w * n;
    for (int p = 0; p < windows.rows; p++) {
        const int top = windows.begin(p), bottom = windows.end(p, windows.h);
        std::memcpy(line, x + top * row_floats, sizeof(float) * size_t(row_floats));
        for (int row = top + 1; row < bottom; row++) join_row<average>(x + row * row_floats, row_floats, line);
        for (int q = 0; q < windows.columns; q++, y += n) {
            const int left = windows.begin(q), right = windows.end(q, windows.w);
            if (n == 1) {
                vf best = splat(line[left]);
                for (int column = left + 1; column < right; column++) best = join<average>(best, splat(line[column]));
                *y = best[0];
            } else {
                std::memcpy(y, line + left * n, sizeof(float) * size_t(n));
                for (int column = left + 1; column < right; column++) join_row<average>(line + column * n, n, y);
            }
        }
        if (!average) continue;
        const float share = 1.0f / float(windows.kernel * windows.kernel);
        for (float* sum = y - windows.columns * n; sum < y; sum++) *sum *= share;
    }
}

}  // namespace

void pool_rows(const float* x, int64_t channels, int h, int w, int n, int kernel, int stride, int padding, int rows,
               int columns, bool average, float* y, int threads) {
    const Windows windows{h, w, n, kernel, stride, padding, rows, columns, average};
    const int64_t from = int64_t(h) * w * n, to = int64_t(rows) * columns * n;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Buffer<float> line(size_t(w) * n);
#pragma omp for schedule(static)
        for (int64_t channel = 0; channel < channels; channel++) {
            (average ? pool_channel<true> : pool_channel<false>)(windows, x + channel * from, line.data,
                                                                  y + channel * to);
        }
    }
}

}  // namespace torchswat::SWAT_ISA
