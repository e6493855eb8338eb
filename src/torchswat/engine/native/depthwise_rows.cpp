// A depthwise convolution with few samples: the lanes of a vector are neighbours in a row.
//
//     X [c][h][w][n]   W [k][r][s]   Y [k][out_h][out_w][n]       filter k reads channel k / (filters / channels)
//       |  copy a band of rows into zeros, once for each phase (index % stride) of rows and of columns
//       v
//     planes [phase_h][phase_w][row][pitch]      pitch = (out_w + reach) * n floats: at most 24 KB
//       |  every tap is one distance in the planes, across the ends of rows: lanes there are computed and dropped
//       v
//     line [row][pitch]   ->  activation, in the first-level cache  ->  Y
//
// For an output: 1 multiply-add a kept tap, with one load of the first-level cache; 4 bytes read and written. A thread
// has whole filters, so nothing depends on the number of threads.
#include "buffer.h"
#include "curves.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int together = registers == 32 ? 8 : 4;  // vectors of sums
constexpr int64_t band_floats = 6 << 10;           // of the planes: half of the first-level cache
constexpr int64_t few = 1 << 14;                   // multiply-adds, in vectors, that one thread does alone

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Where the planes of a band lie.
struct Band {
    const ConvShape& s;
    int64_t columns, pitch, reach;  // of a plane: columns, floats of a row, rows beyond those of the result
    int64_t height, rows;  // of the result in a band; of a plane

    explicit Band(const ConvShape& s) : s(s) {
        columns = s.out_w + int64_t(s.s - 1) * s.dilation_w / s.stride_w;
        pitch = columns * s.n;
        reach = int64_t(s.r - 1) * s.dilation_h / s.stride_h;
        const int64_t planes = int64_t(s.stride_h) * s.stride_w;
        height = smaller(s.out_h, larger(1, band_floats / (planes * pitch) - reach));
        rows = height + reach;
    }
    int64_t plane() const { return rows * pitch; }
    // The lanes that are dropped reach beyond the last plane.
    int64_t floats() const { return plane() * s.stride_h * s.stride_w + pitch + together * W; }
    int64_t line() const { return ceil_div(height * pitch, together * W) * together * W; }
    int64_t offset(int r, int c) const {
        const int64_t down = int64_t(r) * s.dilation_h, right = int64_t(c) * s.dilation_w;
        const int64_t phase = down % s.stride_h * s.stride_w + right % s.stride_w;
        return phase * plane() + down / s.stride_h * pitch + right / s.stride_w * s.n;
    }
};

void fill(float* to, int64_t floats) { std::memset(to, 0, sizeof(float) * size_t(floats)); }

void copy_floats(const float* from, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + W <= n; i += W) storeu(to + i, loadu(from + i));
    if (i < n) store_first(to + i, load_first(from + i, int(n - i)), int(n - i));
}

// to[i] = from[2 * i]
void copy_even(const float* from, int64_t n, float* to) {
    vint places{};
    for (int lane = 0; lane < W; lane++) places[lane] = 2 * lane;
    int64_t i = 0;
    for (; i + W < n; i += W) {  // the last vector would be read beyond its end
        storeu(to + i, __builtin_shuffle(loadu(from + 2 * i), loadu(from + 2 * i + W), places));
    }
    for (; i < n; i++) to[i] = from[2 * i];
}

// to[j] = the samples of column j * stride + first of a row; columns outside of it are left alone, for they are zero.
void copy_row(const ConvShape& s, const float* row, int64_t first, int64_t columns, float* to) {
    const int64_t n = s.n, stride = s.stride_w;
    const int64_t begin = first < 0 ? ceil_div(-first, stride) : 0;
    const int64_t end = smaller(columns, first < s.w ? (s.w - 1 - first) / stride + 1 : 0);
    if (end <= begin) return;
    const float* from = row + (begin * stride + first) * n;
    to += begin * n;
    if (stride == 1) return copy_floats(from, (end - begin) * n, to);
    if (stride == 2 && n == 1) return copy_even(from, end - begin, to);
    for (int64_t j = begin; j < end; j++, from += stride * n, to += n) copy_floats(from, n, to);
}

// The planes of the rows of the result from `top` on. Where there is one band, rows outside are zero as they were.
void copy_band(const Band& band, const float* map, int64_t top, int64_t height, float* to) {
    const ConvShape& s = band.s;
    for (int phase_h = 0; phase_h < s.stride_h; phase_h++) {
        for (int phase_w = 0; phase_w < s.stride_w; phase_w++, to += band.plane()) {
            for (int64_t i = 0; i < height + band.reach; i++) {
                const int64_t row = (top + i) * s.stride_h + phase_h - s.pad_h;
                if (row >= 0 && row < s.h) {
                    copy_row(s, map + row * s.w * s.n, phase_w - s.pad_w, band.columns, to + i * band.pitch);
                } else if (band.height < s.out_h) {
                    fill(to + i * band.pitch, band.pitch);
                }
            }
        }
    }
}

struct Tap {
    float weight;
    int32_t offset;
};

template <int vectors>
inline __attribute__((always_inline)) void sum_taps(const Tap* taps, int count, float bias, const float* from,
                                                    float* to) {
    vf sums[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) sums[v] = splat(bias);
    for (int t = 0; t < count; t++) {
        const vf weight = splat(taps[t].weight);
        const float* source = from + taps[t].offset;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sums[v] += weight * loadu(source + v * W);
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) store(to + v * W, sums[v]);
}

}  // namespace

void depthwise_rows(ConvShape shape, const float* x, const float* weights, const float* bias, Activation after, float* y,
                    int threads) {
    const Band band(shape);
    const int area = shape.r * shape.s, filters = shape.k / shape.c;
    const int64_t row = int64_t(shape.out_w) * shape.n, work = shape.output_map() / W * shape.k * area;
#pragma omp parallel num_threads(threads) if (threads > 1 && work > few)
    {
        Buffer<float> planes{size_t(band.floats())}, line{size_t(band.line())};
        Buffer<Tap> taps{size_t(area)};
        Buffer<int32_t> offsets{size_t(area)};
        for (int tap = 0; tap < area; tap++) offsets[tap] = int32_t(band.offset(tap / shape.s, tap % shape.s));
        fill(planes.data, band.floats());
        int copied = -1;  // the channel whose map lies in the planes as a whole
#pragma omp for schedule(static)
        for (int k = 0; k < shape.k; k++) {
            const float* map = x + k / filters * shape.input_map();
            float* to = y + k * shape.output_map();
            int kept = 0;
            for (int tap = 0; tap < area; tap++) {
                const float weight = weights[int64_t(k) * area + tap];
                if (weight != 0) taps[kept++] = {weight, offsets[tap]};
            }
            for (int64_t top = 0; top < shape.out_h; top += band.height) {
                const int64_t height = smaller(band.height, shape.out_h - top), length = height * band.pitch;
                if (copied != k / filters) copy_band(band, map, top, height, planes.data);
                if (band.height == shape.out_h) copied = k / filters;
                int64_t i = 0;
                for (; i + together / 2 * W < length; i += together * W)
                    sum_taps<together>(taps.data, kept, bias[k], planes.data + i, line.data + i);
                for (; i < length; i += together / 2 * W)
                    sum_taps<together / 2>(taps.data, kept, bias[k], planes.data + i, line.data + i);
                if (after.kind != Activation::none) apply_activation(line.data, length, after, line.data);
                for (int64_t p = 0; p < height; p++, to += row) copy_floats(line.data + p * band.pitch, row, to);
            }
        }
    }
}

}  // namespace torchswat::SWAT_ISA
