// Max pooling (square kernels) and the average over a whole map.
//
// Samples innermost, so a position is one row of N floats and every row is worked on in vectors, whatever the
// geometry:
//
//     x [C][H][W][N]   y [C][OH][OW][N]   winner [C][OH][OW][N] bytes: which tap, row * kernel + column, was largest
//
// The backward pass gathers: each input position adds up, in order, the windows that it won. So grad_x is written
// once and needs no zeros before, and nothing depends on the number of threads (a thread has whole channels).
//
//     2x2 stride 2, bytes an input entry: forward 4 read + 1 + 1/4 written, backward 1 + 1/4 read + 4 written
//     average, 2x2:                       forward 4 read + 1 written,       backward 1 read + 4 written
#include "kernels.h"
#include "mask.h"
#include "stream.h"

namespace torchswat::SWAT_ISA {
namespace {

typedef uint8_t vb __attribute__((vector_size(W)));

void store_bytes(uint8_t* to, vi x, int lanes) {
    const vb bytes = __builtin_convertvector(x, vb);
    std::memcpy(to, &bytes, size_t(lanes));
}

vi load_bytes(const uint8_t* from, int lanes) {
    vb bytes{};
    std::memcpy(&bytes, from, size_t(lanes));
#if defined(__AVX512F__)  // the compiler would widen lane by lane
    return reinterpret_cast<vi>(_mm512_maskz_cvtepu8_epi32(0xffff, reinterpret_cast<__m128i>(bytes)));
#else
    return __builtin_convertvector(bytes, vi);
#endif
}

struct Window {
    int h, w, kernel, stride, padding, rows, columns;  // rows and columns of y

    int begin(int p) const { return p * stride - padding; }  // the first row (or column) of x under window p
    bool overlaps() const { return stride < kernel; }
};

int most(int a, int b) { return a > b ? a : b; }
int fewest(int a, int b) { return a < b ? a : b; }

// y and the winning tap of one window: rows [top, bottom) x columns [left, right) of the map, at sample i.
void pool_one(const float* x, const Window& window, int64_t n, int p, int q, int64_t i, int lanes, float* y,
              uint8_t* winner) {
    const int row = window.begin(p), column = window.begin(q);
    const int top = most(row, 0), bottom = fewest(row + window.kernel, window.h);
    const int left = most(column, 0), right = fewest(column + window.kernel, window.w);
    vf best = splat(-__builtin_inff());
    vi tap = splat_int((top - row) * window.kernel + left - column);
    for (int a = top; a < bottom; ++a)
        for (int b = left; b < right; ++b) {
            const vf value = load_first(x + (int64_t(a) * window.w + b) * n + i, lanes);
            const vi better = (value > best) | (value != value);  // a NaN wins, the last one stays, as in torch
            best = better ? value : best;
            tap = better ? splat_int((a - row) * window.kernel + b - column) : tap;
        }
    store_first(y + i, best, lanes);
    store_bytes(winner + i, tap, lanes);
}

// Calls work(i, lanes) for the vectors of one row of n samples.
template <class Work> void along_samples(int64_t n, Work work) {
    int64_t i = 0;
    for (; i + W <= n; i += W) work(i, W);
    if (i < n) work(i, int(n - i));
}

// Gathers, for all samples, the gradients of the windows from (first_p, first_q) on that chose position (row, column).
// Streaming is for windows that do not overlap: the second would read what the first wrote.
template <bool streaming>
void gather_position(const float* grad_y, const uint8_t* winner, const Window& window, int64_t n, int row, int column,
                     int first_p, int first_q, float* grad_x) {
    bool written = false;
    for (int p = first_p; p < window.rows && window.begin(p) <= row; ++p)
        for (int q = first_q; q < window.columns && window.begin(q) <= column; ++q) {
            const int tap = (row - window.begin(p)) * window.kernel + column - window.begin(q);
            const int64_t at = (int64_t(p) * window.columns + q) * n;
            along_samples(n, [&](int64_t i, int lanes) {
                const vi won = load_bytes(winner + at + i, lanes) == tap;
                vf gradient = reinterpret_cast<vf>(reinterpret_cast<vi>(load_first(grad_y + at + i, lanes)) & won);
                if (streaming) return put<streaming>(grad_x + i, gradient);
                if (written) gradient += load_first(grad_x + i, lanes);
                store_first(grad_x + i, gradient, lanes);
            });
            written = true;
        }
    if (!written) std::memset(grad_x, 0, sizeof(float) * size_t(n));
}

template <bool streaming>
void gather_channel(const float* grad_y, const uint8_t* winner, const Window& window, int64_t n, float* grad_x) {
    int p = 0;
    for (int row = 0; row < window.h; ++row) {
        while (window.begin(p) + window.kernel <= row) ++p;
        int q = 0;
        for (int column = 0; column < window.w; ++column) {
            while (window.begin(q) + window.kernel <= column) ++q;
            gather_position<streaming>(grad_y, winner, window, n, row, column, p, q,
                                       grad_x + (int64_t(row) * window.w + column) * n);
        }
    }
    settle<streaming>();
}

Window window_of(int h, int w, int kernel, int stride, int padding) {
    if (kernel < 1 || kernel > 16) invalid("max_pool: the kernel must have 1 to 16 rows (a tap is one byte).");
    if (stride < 1) invalid("max_pool: the stride must be at least 1.");
    if (padding < 0 || 2 * padding > kernel) invalid("max_pool: the padding must be at most half the kernel.");
    if (fewest(h, w) + 2 * padding < kernel) invalid("max_pool: the kernel is larger than the padded map.");
    const int rows = (h + 2 * padding - kernel) / stride + 1, columns = (w + 2 * padding - kernel) / stride + 1;
    return {h, w, kernel, stride, padding, rows, columns};
}

}  // namespace

void max_pool_forward(const float* x, int64_t channels, int h, int w, int64_t n, int kernel, int stride, int padding,
                      float* y, uint8_t* winner, int threads) {
    const Window window = window_of(h, w, kernel, stride, padding);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        for (int p = 0; p < window.rows; ++p)
            for (int q = 0; q < window.columns; ++q) {
                const int64_t at = ((c * window.rows + p) * window.columns + q) * n;
                along_samples(n, [&](int64_t i, int lanes) {
                    pool_one(x + c * h * w * n, window, n, p, q, i, lanes, y + at, winner + at);
                });
            }
}

void max_pool_backward(const float* grad_y, const uint8_t* winner, int64_t channels, int h, int w, int64_t n,
                       int kernel, int stride, int padding, float* grad_x, int threads) {
    const Window window = window_of(h, w, kernel, stride, padding);
    const bool streaming = !window.overlaps() && worth_streaming(grad_x, channels * h * w * n, n);
    const auto run = streaming ? gather_channel<true> : gather_channel<false>;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c) {
        const int64_t before = c * window.rows * window.columns * n;
        run(grad_y + before, winner + before, window, n, grad_x + c * h * w * n);
    }
}

namespace {

// Averages: windows that neither overlap nor are padded; what no window reaches counts for nothing.
struct Blocks {
    int h, w, kernel_h, kernel_w, rows, columns;  // rows and columns of y

    float size() const { return float(kernel_h) * float(kernel_w); }
};

Blocks blocks_of(int h, int w, int kernel_h, int kernel_w) {
    if (kernel_h < 1 || kernel_w < 1) invalid("average: the kernel must have at least one row and column.");
    if (kernel_h > h || kernel_w > w) invalid("average: the kernel is larger than the map.");
    return {h, w, kernel_h, kernel_w, h / kernel_h, w / kernel_w};
}

// The sum of a vector of samples over the window whose first position is x, row by row of the window.
vf sum_of_window(const float* x, const Blocks& blocks, int64_t n, int lanes) {
    vf sum{};
    for (int row = 0; row < blocks.kernel_h; ++row) {
        vf part{};
        for (int column = 0; column < blocks.kernel_w; ++column)
            part += load_first(x + (int64_t(row) * blocks.w + column) * n, lanes);
        sum += part;
    }
    return sum;
}

template <bool streaming>
void spread_channel(const float* grad_y, const Blocks& blocks, int64_t n, float* grad_x) {
    const vf size = splat(blocks.size());
    for (int row = 0; row < blocks.h; ++row)
        for (int column = 0; column < blocks.w; ++column, grad_x += n) {
            const int p = row / blocks.kernel_h, q = column / blocks.kernel_w;
            if (p >= blocks.rows || q >= blocks.columns) {
                std::memset(grad_x, 0, sizeof(float) * size_t(n));
                continue;
            }
            const float* from = grad_y + (int64_t(p) * blocks.columns + q) * n;
            along_samples(n, [&](int64_t i, int lanes) {
                const vf share = load_first(from + i, lanes) / size;
                if (streaming) return put<streaming>(grad_x + i, share);
                store_first(grad_x + i, share, lanes);
            });
        }
    settle<streaming>();
}

}  // namespace

// y [C][h / kernel_h][w / kernel_w][N] = means over the windows of x [C][h][w][N]; the whole map is one window too.
void average_forward(const float* x, int64_t channels, int h, int w, int64_t n, int kernel_h, int kernel_w, float* y,
                     int threads) {
    const Blocks blocks = blocks_of(h, w, kernel_h, kernel_w);
    const vf size = splat(blocks.size());
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        for (int p = 0; p < blocks.rows; ++p)
            for (int q = 0; q < blocks.columns; ++q) {
                const float* first = x + ((c * h + int64_t(p) * kernel_h) * w + int64_t(q) * kernel_w) * n;
                float* to = y + ((c * blocks.rows + p) * blocks.columns + q) * n;
                along_samples(n, [&](int64_t i, int lanes) {
                    store_first(to + i, sum_of_window(first + i, blocks, n, lanes) / size, lanes);
                });
            }
}

void average_backward(const float* grad_y, int64_t channels, int h, int w, int64_t n, int kernel_h, int kernel_w,
                      float* grad_x, int threads) {
    const Blocks blocks = blocks_of(h, w, kernel_h, kernel_w);
    const bool streaming = worth_streaming(grad_x, channels * h * w * n, n);
    const auto run = streaming ? spread_channel<true> : spread_channel<false>;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        run(grad_y + c * blocks.rows * blocks.columns * n, blocks, n, grad_x + c * h * w * n);
}

}  // namespace torchswat::SWAT_ISA
