// The largest of a window of bytes, fours [groups][h][w][n][4]: positions are neighbours of 4n bytes, whatever they hold.
#include "kernels.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {
namespace {

// The part of a window, `kernel` long from `first`, that lies within `size`.
struct Range {
    int from, to;
    Range(int first, int kernel, int size) : from(first < 0 ? 0 : first), to(first + kernel < size ? first + kernel : size) {}
};

}  // namespace

void max_pool_fours(const uint8_t* x, int64_t groups, int h, int w, int64_t n, int kernel, int stride, int padding, int rows,
                    int columns, uint8_t* y, int threads) {
    const int64_t position = 4 * n, all = groups * rows;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < all; i++) {
        const uint8_t* map = x + i / rows * h * w * position;
        const Range down(int(i % rows) * stride - padding, kernel, h);
        for (int q = 0; q < columns; q++) {
            const Range right(q * stride - padding, kernel, w);
            uint8_t* to = y + (i * columns + q) * position;
            for (int64_t b = 0; b < position; b++) to[b] = 0;
            for (int r = down.from; r < down.to; r++) {
                for (int s = right.from; s < right.to; s++) {
                    const uint8_t* from = map + (int64_t(r) * w + s) * position;
                    for (int64_t b = 0; b < position; b++) to[b] = from[b] > to[b] ? from[b] : to[b];
                }
            }
        }
    }
}

}  // namespace torchswat::SWAT_ISA
