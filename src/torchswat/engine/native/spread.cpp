// The end of a transposed convolution whose stride is its kernel: every position becomes a block of r x s.
//
//     X [r][s][channels][h][w][n], which is a 1x1 convolution's  ->  Y [channels][h*r][w*s][n]
//
// 4 bytes are read and 4 written an entry.
#include "kernels.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {
namespace {

typedef int32_t vint __attribute__((vector_size(4 * W)));

// to = a[0], b[0], a[1], b[1], ...
void interleave(const float* a, const float* b, int64_t n, float* to) {
    vint low{}, high{};
    for (int lane = 0; lane < W; lane++) {
        low[lane] = lane / 2 + lane % 2 * W;
        high[lane] = low[lane] + W / 2;
    }
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        const vf x = loadu(a + i), y = loadu(b + i);
        storeu(to + 2 * i, __builtin_shuffle(x, y, low));
        storeu(to + 2 * i + W, __builtin_shuffle(x, y, high));
    }
    for (; i < n; i++) to[2 * i] = a[i], to[2 * i + 1] = b[i];
}

}  // namespace

void spread(const float* x, int64_t channels, int64_t h, int64_t w, int64_t n, int r, int s, float* y, int threads) {
    const int64_t map = h * w * n, row = w * n;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && channels * map * r * s > 1 << 14)
    for (int64_t i = 0; i < channels * h * r; i++) {
        const int64_t c = i / (h * r), p = i / r % h, part = i % r;
        const float* from = x + (part * s * channels + c) * map + p * row;
        float* to = y + i * row * s;
        if (s == 2 && n == 1) {
            interleave(from, from + channels * map, w, to);
            continue;
        }
        for (int64_t q = 0; q < w; q++)
            for (int j = 0; j < s; j++, to += n) std::memcpy(to, from + j * channels * map + q * n, sizeof(float) * size_t(n));
    }
}

}  // namespace torchswat::SWAT_ISA
