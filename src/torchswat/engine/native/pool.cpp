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
#include "twice.h"

namespace torchswat::SWAT_ISA {
namespace {

void store_bytes(uint8_t* to, vi x, int lanes) {
    const vb bytes = __builtin_convertvector(x, vb);
    std::memcpy(to, &bytes, size_t(lanes));
}

struct Window {
    int h, w, kernel, stride, padding, rows, columns;  // rows and columns of y

    int begin(int p) const { return p * stride - padding; }  // the first row (or column) of x under window p
    int last(int row, int count) const {  // the last of `count` windows that has this row (or column) of x
        const int p = (row + padding) / stride;
        return p < count ? p : count - 1;
    }
};

int most(int a, int b) { return a > b ? a : b; }
int fewest(int a, int b) { return a < b ? a : b; }

// The largest entries of a window so far, and where they were met.
struct Largest {
    vf value;
    vi tap;

    void take(vf entry, vi at) {
        const vi better = (entry > value) | (entry != entry);  // a NaN wins, the last one stays, as in torch
        value = better ? entry : value;
        tap = better ? at : tap;
    }
};

// A window jumps from row to row, so that the hardware loses track of what comes next: two kilobytes on in each.
template <class Entry> Two read_ahead(const Entry* x) {
    prefetch_twice(x + 2048 / sizeof(Entry));
    return widened(twice_at(x));
}

// Calls two(i) for 2W samples from i on and one(i, lanes) for the last few, W at most.
template <class OfTwo, class OfOne> void along_samples(int64_t n, OfTwo two, OfOne one) {
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) two(i);
    for (; i < n; i += W) one(i, int(least(W, n - i)));
}

// y and the winning tap of one window, for all samples.
template <class Entry>
void pool_window(const Entry* x, const Window& window, int64_t n, int p, int q, Entry* y, uint8_t* winner) {
    const int row = window.begin(p), column = window.begin(q);
    const int top = most(row, 0), bottom = fewest(row + window.kernel, window.h);
    const int left = most(column, 0), right = fewest(column + window.kernel, window.w);
    const auto each_tap = [&](auto work) {
        for (int a = top; a < bottom; ++a)
            for (int b = left; b < right; ++b)
                work((int64_t(a) * window.w + b) * n, splat_int((a - row) * window.kernel + b - column));
    };
    const Largest none{splat(-__builtin_inff()), splat_int((top - row) * window.kernel + left - column)};
    along_samples(
        n,
        [&](int64_t i) {
            Largest a = none, b = none;
            each_tap([&](int64_t at, vi tap) {
                const Two entries = read_ahead(x + at + i);
                a.take(entries.a, tap);
                b.take(entries.b, tap);
            });
            put_twice<false>(y + i, narrowed_exactly({a.value, b.value}, y));
            put_bytes_twice(winner + i, a.tap, b.tap, y);
        },
        [&](int64_t i, int lanes) {
            Largest largest = none;
            each_tap([&](int64_t at, vi tap) { largest.take(load_first(x + at + i, lanes), tap); });
            store_first_exactly(y + i, largest.value, lanes);
            store_bytes(winner + i, largest.tap, lanes);
        });
}

// Gradients whose byte is `tap`, zeros elsewhere. Lanes and not a mask: a load under a mask would wait for it.
vf where_chosen(vf gradients, const uint8_t* winner, int tap, int lanes) {
    vb bytes{};
    std::memcpy(&bytes, winner, size_t(lanes));
#if defined(__AVX512F__)
    const __m128i taps = reinterpret_cast<__m128i>(bytes);
    const vi chosen = reinterpret_cast<vi>(_mm512_movm_epi32(_mm_cmpeq_epi8_mask(taps, _mm_set1_epi8(char(tap)))));
#else
    const vi chosen = widen_entry(bytes) == tap;
#endif
    return reinterpret_cast<vf>(reinterpret_cast<vi>(gradients) & chosen);
}
Two where_chosen(Two gradients, const uint8_t* winner, int tap) {
    return {where_chosen(gradients.a, winner, tap, W), where_chosen(gradients.b, winner + W, tap, W)};
}
vhs where_chosen(vhs gradients, const uint8_t* winner, int tap) {
    typedef int8_t vbs __attribute__((vector_size(2 * W)));
    vbs bytes;
    std::memcpy(&bytes, winner, sizeof bytes);
#if defined(__AVX512F__)
    const __m256i taps = reinterpret_cast<__m256i>(bytes);
    return gradients &
           reinterpret_cast<vhs>(_mm512_movm_epi16(_mm256_cmpeq_epi8_mask(taps, _mm256_set1_epi8(char(tap)))));
#else
    typedef int16_t vhs_signed __attribute__((vector_size(4 * W)));
    return gradients & reinterpret_cast<vhs>(__builtin_convertvector(bytes == vbs{} + int8_t(tap), vhs_signed));
#endif
}

// Gathers, for all samples, the gradients of the windows from (first_p, first_q) on that chose position (row, column).
// A single window, the common case, is a copy of what it chose.
template <bool streaming, class Entry>
void gather_position(const Entry* grad_y, const uint8_t* winner, const Window& window, int64_t n, int row, int column,
                     int first_p, int first_q, Entry* grad_x) {
    const int last_p = window.last(row, window.rows), last_q = window.last(column, window.columns);
    const auto each_window = [&](auto work) {
        for (int p = first_p; p <= last_p; ++p)
            for (int q = first_q; q <= last_q; ++q)
                work((int64_t(p) * window.columns + q) * n,
                     (row - window.begin(p)) * window.kernel + column - window.begin(q));
    };
    const auto sum = [&](int64_t i, int lanes) {
        vf gradient{};
        each_window([&](int64_t at, int tap) {
            gradient += where_chosen(load_first(grad_y + at + i, lanes), winner + at + i, tap, lanes);
        });
        store_first(grad_x + i, gradient, lanes);
    };
    if (first_p > last_p || first_q > last_q) {
        std::memset(grad_x, 0, sizeof(Entry) * size_t(n));
    } else if (first_p == last_p && first_q == last_q) {
        each_window([&](int64_t at, int tap) {
            const auto copy = [&](int64_t i) {
                put_twice<streaming>(grad_x + i, where_chosen(twice_at(grad_y + at + i), winner + at + i, tap));
            };
            along_samples(n, copy, sum);
        });
    } else {
        const auto sum_two = [&](int64_t i) {
            Two gradients{};
            each_window([&](int64_t at, int tap) {
                gradients = gradients + widened(where_chosen(twice_at(grad_y + at + i), winner + at + i, tap));
            });
            put_twice<streaming>(grad_x + i, narrowed(gradients, grad_x));
        };
        along_samples(n, sum_two, sum);
    }
}

template <bool streaming, class Entry>
void gather_channel(const Entry* grad_y, const uint8_t* winner, const Window& window, int64_t n, Entry* grad_x) {
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

template <class Entry>
void max_pool_forward(const Entry* x, int64_t channels, int h, int w, int64_t n, int kernel, int stride, int padding,
                      Entry* y, uint8_t* winner, int threads) {
    const Window window = window_of(h, w, kernel, stride, padding);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        for (int p = 0; p < window.rows; ++p)
            for (int q = 0; q < window.columns; ++q) {
                const int64_t at = ((c * window.rows + p) * window.columns + q) * n;
                pool_window(x + c * h * w * n, window, n, p, q, y + at, winner + at);
            }
}

template <class Entry>
void max_pool_backward(const Entry* grad_y, const uint8_t* winner, int64_t channels, int h, int w, int64_t n,
                       int kernel, int stride, int padding, Entry* grad_x, int threads) {
    const Window window = window_of(h, w, kernel, stride, padding);
    const auto run = worth_streaming(grad_x, channels * h * w * n, n) ? gather_channel<true, Entry>
                                                                      : gather_channel<false, Entry>;
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

// The sum over the window whose first position is x, row by row of the window; load(from) is a vector of samples, or two.
template <class Entry, class Load> auto sum_of_window(const Entry* x, const Blocks& blocks, int64_t n, Load load) {
    decltype(load(x)) sum{};
    for (int row = 0; row < blocks.kernel_h; ++row) {
        decltype(load(x)) part{};
        for (int column = 0; column < blocks.kernel_w; ++column)
            part = part + load(x + (int64_t(row) * blocks.w + column) * n);
        sum = sum + part;
    }
    return sum;
}

template <bool streaming, class Entry>
void spread_channel(const Entry* grad_y, const Blocks& blocks, int64_t n, Entry* grad_x) {
    const auto share_of = [size = splat(blocks.size())](vf gradient) { return gradient / size; };
    for (int row = 0; row < blocks.h; ++row)
        for (int column = 0; column < blocks.w; ++column, grad_x += n) {
            const int p = row / blocks.kernel_h, q = column / blocks.kernel_w;
            if (p >= blocks.rows || q >= blocks.columns) {
                std::memset(grad_x, 0, sizeof(Entry) * size_t(n));
                continue;
            }
            const Entry* from = grad_y + (int64_t(p) * blocks.columns + q) * n;
            along_samples(
                n,
                [&](int64_t i) {
                    put_twice<streaming>(grad_x + i, narrowed(each(widened(twice_at(from + i)), share_of), grad_x));
                },
                [&](int64_t i, int lanes) { store_first(grad_x + i, share_of(load_first(from + i, lanes)), lanes); });
        }
    settle<streaming>();
}

}  // namespace

// y [C][h / kernel_h][w / kernel_w][N] = means over the windows of x [C][h][w][N]; the whole map is one window too.
template <class Entry>
void average_forward(const Entry* x, int64_t channels, int h, int w, int64_t n, int kernel_h, int kernel_w, Entry* y,
                     int threads) {
    const Blocks blocks = blocks_of(h, w, kernel_h, kernel_w);
    const auto mean_of = [size = splat(blocks.size())](vf sum) { return sum / size; };
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        for (int p = 0; p < blocks.rows; ++p)
            for (int q = 0; q < blocks.columns; ++q) {
                const Entry* first = x + ((c * h + int64_t(p) * kernel_h) * w + int64_t(q) * kernel_w) * n;
                Entry* to = y + ((c * blocks.rows + p) * blocks.columns + q) * n;
                along_samples(
                    n,
                    [&](int64_t i) {
                        const auto load = [](const Entry* from) { return read_ahead(from); };
                        const Two sum = sum_of_window(first + i, blocks, n, load);
                        put_twice<false>(to + i, narrowed(each(sum, mean_of), to));
                    },
                    [&](int64_t i, int lanes) {
                        const auto load = [lanes](const Entry* from) { return load_first(from, lanes); };
                        store_first(to + i, mean_of(sum_of_window(first + i, blocks, n, load)), lanes);
                    });
            }
}

template <class Entry>
void average_backward(const Entry* grad_y, int64_t channels, int h, int w, int64_t n, int kernel_h, int kernel_w,
                      Entry* grad_x, int threads) {
    const Blocks blocks = blocks_of(h, w, kernel_h, kernel_w);
    const bool streaming = worth_streaming(grad_x, channels * h * w * n, n);
    const auto run = streaming ? spread_channel<true, Entry> : spread_channel<false, Entry>;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < channels; ++c)
        run(grad_y + c * blocks.rows * blocks.columns * n, blocks, n, grad_x + c * h * w * n);
}

SWAT_POOL(SWAT_INSTANTIATE, float, )
SWAT_POOL(SWAT_INSTANTIATE, bf16, )

}  // namespace torchswat::SWAT_ISA
