// The three products of a depthwise convolution: every channel with a kernel of its own, samples innermost.
//
//     X [c][h][w][n]   W [c][r][s]   Y [c][out_h][out_w][n]
//
// A position of a channel is a stretch of n samples, so a tap is one multiply-add on whole vectors, wherever the window
// stands. Taps whose weight is zero are left out of forward and grad_input: at sparsity S they cost 1 - S.
//
//     forward, grad_input   2 (1 - S) R S operations and as many loads an entry, from the cache that holds a channel
//     grad_weight           2 R S operations an entry, 5/4 loads each
//
// A thread has whole channels; sums run in a fixed order, so nothing depends on the number of threads.
#include "bfloat16.h"
#include "buffer.h"
#include "kernels.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int together = 4;  // vectors of samples in registers

struct Tap {
    float weight;
    int r, s;
};

// The taps of a channel whose weight is not zero (NaN is not).
int list_taps(const ConvShape& shape, const float* weights, Tap* taps) {
    int count = 0;
    for (int r = 0; r < shape.r; ++r)
        for (int s = 0; s < shape.s; ++s) {
            const float weight = weights[r * shape.s + s];
            if (weight != 0) taps[count++] = {weight, r, s};
        }
    return count;
}

template <class Entry> struct Term {  // of a result: a weight, and where the position that it multiplies begins
    float weight;
    const Entry* from;
};

// to[0..n) = start + the sum of the terms.
template <class Entry> void add_terms(const Term<Entry>* terms, int count, float start, int64_t n, Entry* to) {
    int64_t i = 0;
    for (; i + together * W <= n; i += together * W) {
        vf sums[together];
        for (vf& sum : sums) sum = splat(start);
        for (int t = 0; t < count; ++t) {
            const vf weight = splat(terms[t].weight);
            const Entry* from = terms[t].from + i;
#pragma GCC unroll 4
            for (int v = 0; v < together; ++v) sums[v] += weight * loadu(from + v * W);
        }
        for (int v = 0; v < together; ++v) storeu(to + i + v * W, sums[v]);
    }
    for (; i < n; i += W) {
        const int lanes = int(least(W, n - i));
        vf sum = splat(start);
        for (int t = 0; t < count; ++t) sum += splat(terms[t].weight) * load_first(terms[t].from + i, lanes);
        store_first(to + i, sum, lanes);
    }
}

template <class Entry>
void forward(const ConvShape& shape, const Entry* x, const float* weights, const float* bias, Entry* y, int threads) {
    const int area = shape.r * shape.s;
#pragma omp parallel num_threads(threads) if (shape.output_map() * shape.c > 1 << 13)
    {
        Buffer<Tap> taps{size_t(area)};
        Buffer<Term<Entry>> terms{size_t(area)};
#pragma omp for schedule(static)
        for (int c = 0; c < shape.c; ++c) {
            const int kept = list_taps(shape, weights + c * area, taps.data);
            const Entry* source = x + c * shape.input_map();
            Entry* to = y + c * shape.output_map();
            for (int p = 0; p < shape.out_h; ++p)
                for (int q = 0; q < shape.out_w; ++q, to += shape.n) {
                    int count = 0;
                    for (int t = 0; t < kept; ++t) {
                        const int h = p * shape.stride_h + taps[t].r - shape.pad_h;
                        const int w = q * shape.stride_w + taps[t].s - shape.pad_w;
                        if (h < 0 || h >= shape.h || w < 0 || w >= shape.w) continue;
                        terms[count++] = {taps[t].weight, source + (int64_t(h) * shape.w + w) * shape.n};
                    }
                    add_terms(terms.data, count, bias ? bias[c] : 0.0f, shape.n, to);
                }
        }
    }
}

template <class Entry>
void grad_input(const ConvShape& shape, const Entry* grad_y, const float* weights, Entry* grad_x, int threads) {
    const int area = shape.r * shape.s;
#pragma omp parallel num_threads(threads) if (shape.input_map() * shape.c > 1 << 13)
    {
        Buffer<Tap> taps{size_t(area)};
        Buffer<Term<Entry>> terms{size_t(area)};
#pragma omp for schedule(static)
        for (int c = 0; c < shape.c; ++c) {
            const int kept = list_taps(shape, weights + c * area, taps.data);
            const Entry* source = grad_y + c * shape.output_map();
            Entry* to = grad_x + c * shape.input_map();
            for (int h = 0; h < shape.h; ++h)
                for (int w = 0; w < shape.w; ++w, to += shape.n) {
                    int count = 0;
                    for (int t = 0; t < kept; ++t) {
                        const int down = h + shape.pad_h - taps[t].r, right = w + shape.pad_w - taps[t].s;
                        if (down < 0 || right < 0 || down % shape.stride_h || right % shape.stride_w) continue;
                        const int p = down / shape.stride_h, q = right / shape.stride_w;
                        if (p >= shape.out_h || q >= shape.out_w) continue;
                        terms[count++] = {taps[t].weight, source + (int64_t(p) * shape.out_w + q) * shape.n};
                    }
                    add_terms(terms.data, count, 0.0f, shape.n, to);
                }
        }
    }
}

template <class Entry>
void gradient_of_weight(const ConvShape& shape, const Entry* x, const Entry* grad_y, float* grad_weight, int threads) {
    const int area = shape.r * shape.s;
#pragma omp parallel num_threads(threads) if (shape.output_map() * shape.c > 1 << 13)
    {
        Buffer<vf> sums{size_t(area)};
#pragma omp for schedule(static)
        for (int c = 0; c < shape.c; ++c) {
            std::memset(static_cast<void*>(sums.data), 0, sizeof(vf) * size_t(area));
            const Entry* source = x + c * shape.input_map();
            const Entry* gradient = grad_y + c * shape.output_map();
            for (int p = 0; p < shape.out_h; ++p)
                for (int q = 0; q < shape.out_w; ++q, gradient += shape.n) {
                    const int top = p * shape.stride_h - shape.pad_h, left = q * shape.stride_w - shape.pad_w;
                    const int r0 = top < 0 ? -top : 0, r1 = int(least(shape.r, shape.h - top));
                    const int s0 = left < 0 ? -left : 0, s1 = int(least(shape.s, shape.w - left));
                    for (int64_t i = 0; i < shape.n; i += together * W) {
                        vf g[together];
                        int lanes[together];
                        for (int v = 0; v < together; ++v) {
                            const int64_t left_over = shape.n - i - v * W;
                            lanes[v] = left_over <= 0 ? 0 : int(least(W, left_over));
                            g[v] = lanes[v] ? load_first(gradient + i + v * W, lanes[v]) : vf{};
                        }
                        const bool whole = lanes[together - 1] == W;
                        for (int r = r0; r < r1; ++r) {
                            const Entry* row = source + (int64_t(top + r) * shape.w + left) * shape.n + i;
                            for (int s = s0; s < s1; ++s) {
                                const Entry* from = row + int64_t(s) * shape.n;
                                vf sum = sums[r * shape.s + s];
                                if (whole) {
#pragma GCC unroll 4
                                    for (int v = 0; v < together; ++v) sum += g[v] * loadu(from + v * W);
                                } else {
                                    for (int v = 0; v < together && lanes[v]; ++v)
                                        sum += g[v] * load_first(from + v * W, lanes[v]);
                                }
                                sums[r * shape.s + s] = sum;
                            }
                        }
                    }
                }
            for (int tap = 0; tap < area; ++tap) {
                double total = 0;
                for (int lane = 0; lane < W; ++lane) total += double(sums[tap][lane]);
                grad_weight[c * area + tap] = float(total);
            }
        }
    }
}

}  // namespace

void depthwise_forward(const ConvShape& shape, const float* x, const float* weights, const float* bias, float* y,
                       int threads) {
    forward(shape, x, weights, bias, y, threads);
}
void depthwise_grad_input(const ConvShape& shape, const float* grad_y, const float* weights, float* grad_x,
                          int threads) {
    grad_input(shape, grad_y, weights, grad_x, threads);
}
void depthwise_grad_weight(const ConvShape& shape, const float* x, const float* grad_y, float* grad_weight,
                           int threads) {
    gradient_of_weight(shape, x, grad_y, grad_weight, threads);
}

// The same of bfloat16 maps; weights and sums are float32.
void depthwise_forward_bf16(const ConvShape& shape, const bf16* x, const float* weights, const float* bias, bf16* y,
                            int threads) {
    forward(shape, x, weights, bias, y, threads);
}
void depthwise_grad_input_bf16(const ConvShape& shape, const bf16* grad_y, const float* weights, bf16* grad_x,
                               int threads) {
    grad_input(shape, grad_y, weights, grad_x, threads);
}
void depthwise_grad_weight_bf16(const ConvShape& shape, const bf16* x, const bf16* grad_y, float* grad_weight,
                                int threads) {
    gradient_of_weight(shape, x, grad_y, grad_weight, threads);
}

}  // namespace torchswat::SWAT_ISA
