// Batch norm, ReLU and the residual add, in one pass over each channel that is still in the cache.
//
// Samples innermost makes a channel one stretch of `length` = H*W*N floats:
//
//     x, y, residual, gradients [C][length]       positive [C][ceil(length / 64)] words of 64 bits, first entry lowest
//
// Forward, for each channel: mean and deviation (x is read from memory), then y = ReLU(x * scale + shift + residual)
// (x from the second-level cache), with one bit an entry that says where the ReLU let it through. Backward: the two
// sums over g = grad_y * positive and g * normalised x, then grad_x, and g itself where a residual wants it.
//
//     forward   bytes an entry: 4 read + 4 written + 1/8     (+ 4 with a residual)
//     backward  bytes an entry: 8 read + 4 written + 1/8     (+ 4 with a residual)
//     both about 6 operations an entry: bandwidth bound
//
// The backward pass needs x, or a narrower copy of it that the forward pass writes beside y (kept_input.h). Where x is
// whole and nothing is added to it, the bits are not needed: y's sign is computed again.
//
// Statistics: mean and squared deviations of pieces of 2048 entries in float (each is read twice from the first-level
// cache), joined in double by Chan's formula: no cancellation however large the mean. One thread has a channel alone,
// so nothing depends on the number of threads. Outputs may be the same memory as inputs of the same shape.
#include <cmath>

#include "kept_input.h"
#include "kernels.h"
#include "mask.h"
#include "stream.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t word = 64;     // entries of one word of the bitmask
constexpr int64_t piece = 2048;  // entries whose sums stay in float
constexpr int ways = 4;          // independent sums, to hide the latency of additions

double sum_of(const vf* sums) {
    double sum = 0;
    for (int way = 0; way < ways; ++way)
        for (int lane = 0; lane < W; ++lane) sum += double(sums[way][lane]);
    return sum;
}

// Sums f(vector at i) over a piece; f gets lanes beyond the end as `first_lanes` says.
template <class Function> double sum_piece(int64_t begin, int64_t end, Function f) {
    vf sums[ways] = {};
    int64_t i = begin;
    for (; i + ways * W <= end; i += ways * W)
#pragma GCC unroll 4
        for (int way = 0; way < ways; ++way) sums[way] += f(i + way * W, W);
    for (; i < end; i += W) sums[0] += f(i, int(least(W, end - i)));
    return sum_of(sums);
}

struct Moments {
    double mean, squares;  // squares: the sum of squared deviations
};

Moments moments(const float* x, int64_t length) {
    Moments all{0, 0};
    for (int64_t begin = 0; begin < length; begin += piece) {
        const int64_t end = least(begin + piece, length), count = end - begin;
        const double sum = sum_piece(begin, end, [&](int64_t i, int lanes) { return load_first(x + i, lanes); });
        const double mean = sum / count;
        const vf centre = splat(float(mean));
        const double squares = sum_piece(begin, end, [&](int64_t i, int lanes) {
            const vf deviation = keep(load_first(x + i, lanes) - centre, first_lanes(lanes));
            return deviation * deviation;
        });
        const double off = mean - double(float(mean));  // squares are about the rounded mean
        const double step = mean - all.mean;
        all.squares += squares - off * off * count + step * step * begin * count / end;
        all.mean += step * count / end;
    }
    return all;
}

template <bool answer> struct Known {
    static constexpr bool value = answer;
};

// Calls work with what is a question at run time as an answer at compile time.
template <class Work> void decide(bool question, Work work) {
    if (question) work(Known<true>{});
    else work(Known<false>{});
}

// y = x * scale + shift (+ residual) (through a ReLU, whose bits go to `positive` if that is wanted); x goes to `kept`.
template <bool relu, bool with_residual, bool streaming, class Kept>
void affine(const float* x, int64_t length, float scale, float shift, const float* residual, float* y,
            uint64_t* positive, Kept kept) {
    const vf scales = splat(scale), shifts = splat(shift);
    const auto value_at = [&](int64_t i, int lanes, uint64_t& bits) {
        const vf entry = load_first(x + i, lanes);
        kept.put(i, entry, lanes);
        vf value = affine_at(entry, scales, shifts);
        if constexpr (with_residual) value += load_first(residual + i, lanes);
        if constexpr (relu) {
            const unsigned through = not_negative_or_zero(value) & first_lanes(lanes);
            bits |= uint64_t(through) << (i % word);
            value = keep(value, through);
        }
        return value;
    };
    int64_t begin = 0;
    for (; begin + word <= length; begin += word) {
        uint64_t bits = 0;
#pragma GCC unroll 16
        for (int at = 0; at < word; at += W) put<streaming>(y + begin + at, value_at(begin + at, W, bits));
        if (relu && positive) positive[begin / word] = bits;
    }
    if (begin == length) return;
    uint64_t bits = 0;
    for (int64_t i = begin; i < length; i += W) {
        const int lanes = int(least(W, length - i));
        store_first(y + i, value_at(i, lanes, bits), lanes);
    }
    if (relu && positive) positive[begin / word] = bits;
}

// Output of a tensor that shares the memory of an input is in the cache already.
bool streams(const float* to, int64_t channels, int64_t length, const float* input, const float* other) {
    return to != input && to != other && worth_streaming(to, channels * length, length);
}

// One channel of the above, with the questions answered.
template <bool streaming, class Kept>
void affine_channel(const float* x, int64_t length, float scale, float shift, const float* residual, bool relu,
                    float* y, uint64_t* positive, Kept kept) {
    decide(relu, [&](auto with_relu) {
        decide(residual != nullptr, [&](auto with_residual) {
            affine<with_relu.value, with_residual.value, streaming>(x, length, scale, shift, residual, y, positive,
                                                                    kept);
        });
    });
}

// ---- what the ReLU let through, as the backward pass finds it: gradients pass there ---------------------------------

struct NoReLU {
    vf pass(vf gradient, int64_t, int) const { return gradient; }
};

struct ByBits {
    const uint64_t* positive;

    vf pass(vf gradient, int64_t i, int) const {
        return keep(gradient, unsigned(positive[i / word] >> (i % word)) & all_lanes);
    }
};

// Computed again from the input: an operation an entry more, and no bits.
struct BySign {
    const float* x;
    vf scale, shift;

    vf pass(vf gradient, int64_t i, int lanes) const {
        return keep(gradient, not_negative_or_zero(affine_at(load_first(x + i, lanes), scale, shift)));
    }
};

struct Sums {
    double gradient, projected;  // of g, and of g * normalised x
};

template <class Gate, class Kept>
Sums gradient_sums(const float* grad_y, Gate gate, Kept x, int64_t length, float inverse) {
    Sums all{0, 0};
    for (int64_t begin = 0; begin < length; begin += piece) {
        const int64_t end = least(begin + piece, length);
        vf projected[ways] = {};
        int way = 0;
        all.gradient += sum_piece(begin, end, [&](int64_t i, int lanes) {
            const vf g = gate.pass(load_first(grad_y + i, lanes), i, lanes);
            projected[way++ % ways] += g * x.deviation(i, lanes);
            return g;
        });
        all.projected += sum_of(projected) * double(inverse);
    }
    return all;
}

// grad_x = scale * (g - mean of g - normalised x * mean of g * normalised x),
// as g * scale + (x - mean) * slope + offset.
struct Slopes {
    float scale, slope, offset;
};

template <bool with_residual, bool streaming, class Gate, class Kept>
void gradient_of_x(const float* grad_y, Gate gate, Kept x, int64_t length, Slopes line, float* grad_x,
                   float* grad_residual) {
    const vf scale = splat(line.scale), slope = splat(line.slope), offset = splat(line.offset);
    const auto result = [&](vf g, int64_t i, int lanes) {
        return g * scale + (x.deviation(i, lanes) * slope + offset);
    };
    int64_t i = 0;
    for (; i + W <= length; i += W) {
        const vf g = gate.pass(loadu(grad_y + i), i, W), gradient = result(g, i, W);
        if constexpr (with_residual) put<streaming>(grad_residual + i, g);
        put<streaming>(grad_x + i, gradient);
    }
    if (i == length) return;
    const int lanes = int(length - i);
    const vf g = gate.pass(load_first(grad_y + i, lanes), i, lanes), gradient = result(g, i, lanes);
    if constexpr (with_residual) store_first(grad_residual + i, g, lanes);
    store_first(grad_x + i, gradient, lanes);
}

// One channel of the backward pass.
template <bool streaming, class Gate, class Kept>
void backward_channel(const float* grad_y, Gate gate, Kept x, int64_t length, float weight, float inverse,
                      float* grad_x, float* grad_residual, float* grad_weight, float* grad_bias) {
    const Sums sums = gradient_sums(grad_y, gate, x, length, inverse);
    const double scale = double(weight) * inverse;
    const Slopes line{float(scale), float(-scale * inverse * sums.projected / double(length)),
                      float(-scale * sums.gradient / double(length))};
    decide(grad_residual != nullptr, [&](auto with_residual) {
        gradient_of_x<with_residual.value, streaming>(grad_y, gate, x, length, line, grad_x, grad_residual);
    });
    *grad_weight = float(sums.projected);
    *grad_bias = float(sums.gradient);
}

int64_t words(int64_t length) { return (length + word - 1) / word; }

// Calls work(channel, streaming) for all channels, a thread having whole ones.
template <class Work> void each_channel(int64_t channels, bool streaming, int threads, Work work) {
    decide(streaming, [&](auto known) {
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
#pragma omp for schedule(static) nowait
            for (int64_t c = 0; c < channels; ++c) work(c, known);
            settle<known.value>();
        }
    });
}

}  // namespace

// Training-mode batch norm of x [C][length]; weight, bias, residual, positive and the running statistics may be null.
// `kept` is where a copy of x of `kept_bytes` an entry goes, 2 or 1 (with `step` and `low` a channel); with 4 there is
// none. `scale` and `shift` [C] get the factors of y = x * scale + shift; they may be null.
// Writes y, the batch's mean and 1 / sqrt(variance + epsilon) [C]; moves the running statistics by `momentum` towards
// the batch's mean and unbiased variance, as torch does.
void batch_norm_forward(const float* x, int64_t channels, int64_t length, const float* weight, const float* bias,
                        double epsilon, const float* residual, bool relu, float* y, uint64_t* positive, float* mean,
                        float* inverse_deviation, float* scale, float* shift, float* running_mean,
                        float* running_variance, double momentum, int kept_bytes, void* kept, float* step, float* low,
                        int threads) {
    const bool streaming = streams(y, channels, length, x, residual);
    each_channel(channels, streaming, threads, [=](int64_t c, auto known) {
        const int64_t start = c * length;
        const Moments found = moments(x + start, length);
        const double inverse = 1 / std::sqrt(found.squares / double(length) + epsilon);
        const double factor = inverse * (weight ? weight[c] : 1.0f);
        const double summand = (bias ? bias[c] : 0.0f) - found.mean * factor;
        const auto write = [&](auto copy) {
            affine_channel<known.value>(x + start, length, float(factor), float(summand),
                                        residual ? residual + start : nullptr, relu, y + start,
                                        positive ? positive + c * words(length) : nullptr, copy);
        };
        const vf centre = splat(float(found.mean));
        if (kept_bytes == 1) {
            const Range range = range_of(x + start, length);
            const Steps steps = steps_of(range, float(found.mean));
            step[c] = steps.step;
            low[c] = steps.low;
            write(ToBytes{static_cast<uint8_t*>(kept) + start, centre, splat(steps.per_step), splat(steps.zero)});
        } else if (kept_bytes == 2) {
            write(ToBfloat16{static_cast<uint16_t*>(kept) + start, centre});
        } else {
            write(Unwritten{});
        }
        mean[c] = float(found.mean);
        inverse_deviation[c] = float(inverse);
        if (scale) scale[c] = float(factor), shift[c] = float(summand);
        if (!running_mean) return;
        const double unbiased = found.squares / double(length > 1 ? length - 1 : 1);
        running_mean[c] = float((1 - momentum) * running_mean[c] + momentum * found.mean);
        running_variance[c] = float((1 - momentum) * running_variance[c] + momentum * unbiased);
    });
}

// Gradients of batch_norm_forward. What a ReLU let through is told by `positive`, or by `scale` and `shift` and the
// whole x; all are null without a ReLU. grad_residual is null without a residual, and weight may be.
// grad_weight and grad_bias [C] are always written. grad_x or grad_residual may be grad_y's own memory. `kept` is x, or
// its narrower copy.
void batch_norm_backward(const float* grad_y, const uint64_t* positive, const float* scale, const float* shift,
                         int kept_bytes, const void* kept, const float* step, const float* low, int64_t channels,
                         int64_t length, const float* weight, const float* mean, const float* inverse_deviation,
                         float* grad_x, float* grad_residual, float* grad_weight, float* grad_bias, int threads) {
    const float* x = kept_bytes == 4 ? static_cast<const float*>(kept) : nullptr;
    if (scale && !x) invalid("batch_norm_backward: what the ReLU let through cannot be told from a narrow input.");
    const bool streaming = streams(grad_x, channels, length, grad_y, x) &&
                           (!grad_residual || streams(grad_residual, channels, length, grad_y, x));
    each_channel(channels, streaming, threads, [=](int64_t c, auto known) {
        const int64_t start = c * length;
        const auto run = [&](auto gate, auto copy) {
            backward_channel<known.value>(grad_y + start, gate, copy, length, weight ? weight[c] : 1.0f,
                                          inverse_deviation[c], grad_x + start,
                                          grad_residual ? grad_residual + start : nullptr, grad_weight + c,
                                          grad_bias + c);
        };
        const auto read = [&](auto copy) {
            if (positive) run(ByBits{positive + c * words(length)}, copy);
            else run(NoReLU{}, copy);
        };
        if (scale) run(BySign{x + start, splat(scale[c]), splat(shift[c])}, OfFloat32{x + start, splat(mean[c])});
        else if (kept_bytes == 1) read(OfBytes{static_cast<const uint8_t*>(kept) + start, splat(step[c]), splat(low[c])});
        else if (kept_bytes == 2) read(OfBfloat16{static_cast<const uint16_t*>(kept) + start});
        else read(OfFloat32{x + start, splat(mean[c])});
    });
}

// y = x * scale + shift a channel (+ residual) (ReLU): batch norm with fixed statistics. positive may be null.
void affine_forward(const float* x, int64_t channels, int64_t length, const float* scale, const float* shift,
                    const float* residual, bool relu, float* y, uint64_t* positive, int threads) {
    const bool streaming = streams(y, channels, length, x, residual);
    each_channel(channels, streaming, threads, [=](int64_t c, auto known) {
        const int64_t start = c * length;
        affine_channel<known.value>(x + start, length, scale[c], shift[c], residual ? residual + start : nullptr, relu,
                                    y + start, positive ? positive + c * words(length) : nullptr, Unwritten{});
    });
}

namespace {

constexpr int64_t stretch = 64 * word;  // entries of a flat array that a thread takes at a time

}  // namespace

// y = max(x, 0) and its bits, of n entries in any order.
void relu_forward(const float* x, int64_t n, float* y, uint64_t* positive, int threads) {
    each_channel((n + stretch - 1) / stretch, streams(y, 1, n, x, x), threads, [=](int64_t part, auto known) {
        const int64_t begin = part * stretch;
        affine<true, false, known.value>(x + begin, least(stretch, n - begin), 1, 0, nullptr, y + begin,
                                         positive ? positive + begin / word : nullptr, Unwritten{});
    });
}

void relu_backward(const float* grad_y, const uint64_t* positive, int64_t n, float* grad_x, int threads) {
    each_channel((n + stretch - 1) / stretch, streams(grad_x, 1, n, grad_y, grad_y), threads,
                 [=](int64_t part, auto known) {
                     int64_t i = part * stretch;
                     const int64_t end = least(i + stretch, n);
                     const ByBits gate{positive};
                     for (; i + W <= end; i += W) put<known.value>(grad_x + i, gate.pass(loadu(grad_y + i), i, W));
                     const int lanes = int(end - i);
                     if (lanes) store_first(grad_x + i, gate.pass(load_first(grad_y + i, lanes), i, lanes), lanes);
                 });
}

}  // namespace torchswat::SWAT_ISA
