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
//     average:                            forward 4 read,                   backward 4 written
#include "kernels.h"
#include "mask.h"

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
    return __builtin_convertvector(bytes, vi);
}

struct Window {
    int h, w, kernel, stride, padding;
    int out(int size) const { return (size + 2 * padding - kernel) / stride + 1; }
};

int most(int a, int b) { return a > b ? a : b; }
int fewest(int a, int b) { return a < b ? a : b; }

// y and the winning tap of one window: rows [top, bottom) x columns [left, right) of the map, at sample i.
void pool_one(const float* x, const Window& window, int64_t n, int p, int q, int64_t i, int lanes, float* y,
              uint8_t* winner) {
    const int row = p * window.stride - window.padding, column = q * window.stride - window.padding;
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

// What the windows over position (row, column) that chose it hand back, at sample i.
void gather_one(const float* grad_y, const uint8_t* winner, const Window& window, int64_t n, int row, int column,
                int64_t i, int lanes, float* grad_x) {
    const int rows = window.out(window.h), columns = window.out(window.w);
    const auto first = [&](int at) {  // the first window that reaches `at`
        return most(0, (at + window.padding - window.kernel + window.stride) / window.stride);
    };
    vf sum{};
    for (int p = first(row); p < rows && p * window.stride - window.padding <= row; ++p)
        for (int q = first(column); q < columns && q * window.stride - window.padding <= column; ++q) {
            const int tap = (row + window.padding - p * window.stride) * window.kernel + column + window.padding -
                            q * window.stride;
            const int64_t at = (int64_t(p) * columns + q) * n + i;
            const vi won = load_bytes(winner + at, lanes) == tap;
            sum += reinterpret_cast<vf>(reinterpret_cast<vi>(load_first(grad_y + at, lanes)) & won);
        }
    store_first(grad_x + i, sum, lanes);
}

// Calls work(i, lanes) for the vectors of one row of n samples.
template <class Work> void along_samples(int64_t n, Work work) {
    int64_t i = 0;
    for (; i + W <= n; i += W) work(i, W);
    if (i < n) work(i, int(n - i));
}

void check(const Window& window) {
    if (window.kernel < 1 || window.kernel > 16) invalid("max_pool: the kernel must have 1 to 16 rows (a tap is one byte).");
    if (window.stride < 1) invalid("max_pool: the stride must be at least 1.");
    if (window.padding < 0 || 2 * window.padding > window.kernel) invalid("max_pool: the padding must be at most half the kernel.");
    if (window.out(window.h) < 1 || window.out(window.w) < 1) invalid("max_pool: the kernel is larger than the padded map.");
}

}  // namespace

void max_pool_forward(const float* x, int64_t channels, int h, int w, int64_t n, int kernel, int stride, int padding,
                      float* y, uint8_t* winner, int threads) {
    const Window window{h, w, kernel, stride, padding};
    check(window);
    const int rows = window.out(h), columns = window.out(w);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        for (int p = 0; p < rows; ++p)
            for (int q = 0; q < columns; ++q) {
                const int64_t at = ((c * rows + p) * columns + q) * n;
                along_samples(n, [&](int64_t i, int lanes) {
                    pool_one(x + c * h * w * n, window, n, p, q, i, lanes, y + at, winner + at);
                });
            }
}

void max_pool_backward(const float* grad_y, const uint8_t* winner, int64_t channels, int h, int w, int64_t n,
                       int kernel, int stride, int padding, float* grad_x, int threads) {
    const Window window{h, w, kernel, stride, padding};
    check(window);
    const int64_t out_map = int64_t(window.out(h)) * window.out(w) * n;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        for (int row = 0; row < h; ++row)
            for (int column = 0; column < w; ++column) {
                float* to = grad_x + ((c * h + row) * w + column) * n;
                along_samples(n, [&](int64_t i, int lanes) {
                    gather_one(grad_y + c * out_map, winner + c * out_map, window, n, row, column, i, lanes, to);
                });
            }
}

// y [C][N] = mean over the map of x [C][area][N], summed in blocks of 64 positions.
void average_forward(const float* x, int64_t channels, int64_t area, int64_t n, float* y, int threads) {
    constexpr int64_t block = 64;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        along_samples(n, [&](int64_t i, int lanes) {
            vf sum{};
            for (int64_t begin = 0; begin < area; begin += block) {
                vf part{};
                for (int64_t at = begin; at < least(begin + block, area); ++at)
                    part += load_first(x + (c * area + at) * n + i, lanes);
                sum += part;
            }
            store_first(y + c * n + i, sum / splat(float(area)), lanes);
        });
}

void average_backward(const float* grad_y, int64_t channels, int64_t area, int64_t n, float* grad_x, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t at = 0; at < area; ++at)
            along_samples(n, [&](int64_t i, int lanes) {
                const vf share = load_first(grad_y + c * n + i, lanes) / splat(float(area));
                store_first(grad_x + (c * area + at) * n + i, share, lanes);
            });
}

}  // namespace torchswat::SWAT_ISA
