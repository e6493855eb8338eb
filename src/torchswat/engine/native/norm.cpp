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
// Statistics: mean and squared deviations of pieces of 4096 entries in float (each is read twice, and while it comes
// from the first-level cache the next is fetched), joined in double by Chan's formula: no cancellation however large
// the mean. One thread has a channel alone, so nothing depends on the number of threads. Outputs may be the same memory
// as inputs of the same shape.
//
// Activations and their gradients are float32 or bfloat16 (half of those bytes); all else is float32, and so is what is
// computed, so that a result is rounded once.
#include <cmath>

#include "kept_input.h"
#include "kernels.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t word = 64;     // entries of one word of the bitmask
constexpr int64_t piece = 4096;  // entries whose sums stay in float
constexpr int ways = 4;          // independent sums, to hide the latency of additions

double sum_of(const vf* sums) {
    double lanes[W] = {}, sum = 0;
    for (int way = 0; way < ways; ++way)
        for (int lane = 0; lane < W; ++lane) lanes[lane] += double(sums[way][lane]);
    for (int lane = 0; lane < W; ++lane) sum += lanes[lane];
    return sum;
}

// Sums over a piece: two(i) are the summands from i on, 2W of them, and one(i, lanes) those of the last few, W at most.
template <class OfTwo, class OfOne> double sum_piece(int64_t begin, int64_t end, OfTwo two, OfOne one) {
    vf sums[ways] = {};
    int64_t i = begin;
    for (; i + ways * W <= end; i += ways * W)
#pragma GCC unroll 2
        for (int way = 0; way < ways; way += 2) {
            const Two summands = two(i + way * W);
            sums[way] += summands.a;
            sums[way + 1] += summands.b;
        }
    for (; i < end; i += W) {
        const int lanes = int(least(W, end - i));
        sums[0] += keep(one(i, lanes), first_lanes(lanes));
    }
    return sum_of(sums);
}

struct Moments {
    double mean, squares;  // squares: the sum of squared deviations
};

template <class Entry> Moments moments(const Entry* x, int64_t length) {
    Moments all{0, 0};
    for (int64_t begin = 0; begin < length; begin += piece) {
        const int64_t end = least(begin + piece, length), count = end - begin;
        const auto two = [&](int64_t i) { return widened(twice_at(x + i)); };
        const auto one = [&](int64_t i, int lanes) { return load_first(x + i, lanes); };
        const double mean = sum_piece(begin, end, two, one) / count;
        const vf centre = splat(float(mean));
        const auto squared = [&](vf entry) { return (entry - centre) * (entry - centre); };
        const auto two_squared = [&](int64_t i) {
            prefetch_twice(x + i + piece);
            return each(two(i), squared);
        };
        const double squares = sum_piece(begin, end, two_squared,
                                         [&](int64_t i, int lanes) { return squared(one(i, lanes)); });
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
template <bool relu, bool with_residual, bool streaming, class Entry, class Kept>
void affine(const Entry* x, int64_t length, float scale, float shift, const Entry* residual, Entry* y,
            uint64_t* positive, Kept kept) {
    const vf scales = splat(scale), shifts = splat(shift);
    const auto affine_of = [&](vf entry) { return affine_at(entry, scales, shifts); };
    int64_t begin = 0;
    for (; begin + word <= length; begin += word) {
        uint64_t bits = 0;
#pragma GCC unroll 8
        for (int at = 0; at < word; at += 2 * W) {
            const int64_t i = begin + at;
            const Two entries = widened(twice_at(x + i));
            kept.put(i, entries);
            Two values = each(entries, affine_of);
            if constexpr (with_residual) values = values + widened(twice_at(residual + i));
            auto result = narrowed(values, y);
            if constexpr (relu) {
                uint32_t through;
                result = rectified(result, through);
                bits |= uint64_t(through) << at;
            }
            put_twice<streaming>(y + i, result);
        }
        if (relu && positive) positive[begin / word] = bits;
    }
    if (begin == length) return;
    uint64_t bits = 0;
    for (int64_t i = begin; i < length; i += W) {
        const int lanes = int(least(W, length - i));
        const vf entry = load_first(x + i, lanes);
        kept.put(i, entry, lanes);
        vf value = affine_of(entry);
        if constexpr (with_residual) value += load_first(residual + i, lanes);
        if constexpr (relu) {
            const unsigned through = not_negative_or_zero(value) & first_lanes(lanes);
            bits |= uint64_t(through) << (i % word);
            value = keep(value, through);
        }
        store_first(y + i, value, lanes);
    }
    if (relu && positive) positive[begin / word] = bits;
}

// Output of a tensor that shares the memory of an input is in the cache already.
template <class Entry>
bool streams(const Entry* to, int64_t channels, int64_t length, const Entry* input, const Entry* other) {
    return to != input && to != other && worth_streaming(to, channels * length, length);
}

// One channel of the above, with the questions answered.
template <bool streaming, class Entry, class Kept>
void affine_channel(const Entry* x, int64_t length, float scale, float shift, const Entry* residual, bool relu,
                    Entry* y, uint64_t* positive, Kept kept) {
    decide(relu, [&](auto with_relu) {
        decide(residual != nullptr, [&](auto with_residual) {
            affine<with_relu.value, with_residual.value, streaming>(x, length, scale, shift, residual, y, positive,
                                                                    kept);
        });
    });
}

// ---- what the ReLU let through, as the backward pass finds it: gradients pass there ---------------------------------
//
// The bits are applied to entries as they are in memory, which is also what a residual gets; signs to widened ones.

struct NoReLU {
    template <class Twice> Twice pass_twice(Twice gradients, int64_t) const { return gradients; }
    Two where_through(Two gradients, int64_t) const { return gradients; }
    vf pass(vf gradient, int64_t, int) const { return gradient; }
};

struct ByBits : NoReLU {
    const uint64_t* positive;

    explicit ByBits(const uint64_t* bits) : positive(bits) {}
    uint64_t from(int64_t i) const { return positive[i / word] >> (i % word); }
    template <class Twice> Twice pass_twice(Twice gradients, int64_t i) const {
        return keep_twice(gradients, uint32_t(from(i)));
    }
    vf pass(vf gradient, int64_t i, int) const { return keep(gradient, unsigned(from(i)) & all_lanes); }
};

// Computed again from the input: an operation an entry more, and no bits.
template <class Entry> struct BySign : NoReLU {
    const Entry* x;
    vf scale, shift;

    BySign(const Entry* input, float factor, float summand) : x(input), scale(splat(factor)), shift(splat(summand)) {}
    Two where_through(Two gradients, int64_t i) const {
        const Two entries = widened(twice_at(x + i));
        return {where_positive(gradients.a, affine_at(entries.a, scale, shift)),
                where_positive(gradients.b, affine_at(entries.b, scale, shift))};
    }
    vf pass(vf gradient, int64_t i, int lanes) const {
        return where_positive(gradient, affine_at(load_first(x + i, lanes), scale, shift));
    }
};

struct Sums {
    double gradient, projected;  // of g, and of g * normalised x
};

template <class Entry, class Gate, class Kept>
Sums gradient_sums(const Entry* grad_y, Gate gate, Kept x, int64_t length, float inverse) {
    Sums all{0, 0};
    for (int64_t begin = 0; begin < length; begin += piece) {
        const int64_t end = least(begin + piece, length);
        vf projected[ways] = {};
        int way = 0;
        const auto two = [&](int64_t i) {
            const Two g = gate.where_through(widened(gate.pass_twice(twice_at(grad_y + i), i)), i);
            const Two deviations = x.deviations(i);
            projected[way] += g.a * deviations.a;
            projected[way + 1] += g.b * deviations.b;
            way = (way + 2) % ways;
            return g;
        };
        all.gradient += sum_piece(begin, end, two, [&](int64_t i, int lanes) {
            const vf g = gate.pass(load_first(grad_y + i, lanes), i, lanes);
            projected[0] += g * x.deviation(i, lanes);
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

template <bool with_residual, bool streaming, class Entry, class Gate, class Kept>
void gradient_of_x(const Entry* grad_y, Gate gate, Kept x, int64_t length, Slopes line, Entry* grad_x,
                   Entry* grad_residual) {
    const vf scale = splat(line.scale), slope = splat(line.slope), offset = splat(line.offset);
    const auto result = [&](vf g, vf deviation) { return g * scale + (deviation * slope + offset); };
    int64_t i = 0;
    for (; i + 2 * W <= length; i += 2 * W) {
        const auto passed = gate.pass_twice(twice_at(grad_y + i), i);
        const Two g = gate.where_through(widened(passed), i), deviations = x.deviations(i);
        if constexpr (with_residual) put_twice<streaming>(grad_residual + i, passed);
        put_twice<streaming>(grad_x + i, narrowed({result(g.a, deviations.a), result(g.b, deviations.b)}, grad_x));
    }
    for (; i < length; i += W) {
        const int lanes = int(least(W, length - i));
        const vf g = gate.pass(load_first(grad_y + i, lanes), i, lanes);
        const vf gradient = result(g, x.deviation(i, lanes));
        if constexpr (with_residual) store_first(grad_residual + i, g, lanes);
        store_first(grad_x + i, gradient, lanes);
    }
}

// One channel of the backward pass.
template <bool streaming, class Entry, class Gate, class Kept>
void backward_channel(const Entry* grad_y, Gate gate, Kept x, int64_t length, float weight, float inverse,
                      Entry* grad_x, Entry* grad_residual, float* grad_weight, float* grad_bias) {
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
template <class Entry>
void batch_norm_forward(const Entry* x, int64_t channels, int64_t length, const float* weight, const float* bias,
                        double epsilon, const Entry* residual, bool relu, Entry* y, uint64_t* positive, float* mean,
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
        if (kept_bytes == int(sizeof(Entry))) {
            write(Unwritten{});
        } else if (kept_bytes == 1) {
            const Range range = range_of(x + start, length);
            const Steps steps = steps_of(range, float(found.mean));
            step[c] = steps.step;
            low[c] = steps.low;
            write(ToBytes<Entry>{static_cast<uint8_t*>(kept) + start, centre, splat(steps.per_step), splat(steps.zero)});
        } else {
            write(ToBfloat16{static_cast<uint16_t*>(kept) + start, centre});
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
template <class Entry>
void batch_norm_backward(const Entry* grad_y, const uint64_t* positive, const float* scale, const float* shift,
                         int kept_bytes, const void* kept, const float* step, const float* low, int64_t channels,
                         int64_t length, const float* weight, const float* mean, const float* inverse_deviation,
                         Entry* grad_x, Entry* grad_residual, float* grad_weight, float* grad_bias, int threads) {
    const Entry* x = kept_bytes == int(sizeof(Entry)) ? static_cast<const Entry*>(kept) : nullptr;
    if (scale && !x) invalid("batch_norm_backward: what the ReLU let through cannot be told from a narrow input.");
    if (scale && grad_residual) invalid("batch_norm_backward: the gradient of a residual needs the bits of the ReLU.");
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
            if (positive) run(ByBits(positive + c * words(length)), copy);
            else run(NoReLU{}, copy);
        };
        const Whole<Entry> whole{x + start, splat(mean[c])};
        if (scale) run(BySign<Entry>(x + start, scale[c], shift[c]), whole);
        else if (x) read(whole);
        else if (kept_bytes == 1) read(OfBytes<Entry>{static_cast<const uint8_t*>(kept) + start, splat(step[c]), splat(low[c])});
        else read(OfBfloat16{static_cast<const uint16_t*>(kept) + start});
    });
}

// y = x * scale + shift a channel (+ residual) (ReLU): batch norm with fixed statistics. positive may be null.
template <class Entry>
void affine_forward(const Entry* x, int64_t channels, int64_t length, const float* scale, const float* shift,
                    const Entry* residual, bool relu, Entry* y, uint64_t* positive, int threads) {
    const bool streaming = streams(y, channels, length, x, residual);
    each_channel(channels, streaming, threads, [=](int64_t c, auto known) {
        const int64_t start = c * length;
        affine_channel<known.value>(x + start, length, scale[c], shift[c], residual ? residual + start : nullptr, relu,
                                    y + start, positive ? positive + c * words(length) : nullptr, Unwritten{});
    });
}

namespace {

constexpr int64_t stretch = 64 * word;  // entries of a flat array that a thread takes at a time

// A word of entries through the ReLU, and its bits; a word of gradients through the bits.
template <bool streaming, class Entry> uint64_t rectify_word(const Entry* x, Entry* y) {
    uint64_t bits = 0;
#pragma GCC unroll 8
    for (int at = 0; at < word; at += 2 * W) {
        uint32_t through;
        put_twice<streaming>(y + at, rectified(twice_at(x + at), through));
        bits |= uint64_t(through) << at;
    }
    return bits;
}
template <bool streaming, class Entry> void pass_word(const Entry* grad_y, uint64_t bits, Entry* grad_x) {
#pragma GCC unroll 8
    for (int at = 0; at < word; at += 2 * W)
        put_twice<streaming>(grad_x + at, keep_twice(twice_at(grad_y + at), uint32_t(bits >> at)));
}

// Calls work(from, to, which word, streaming) for the words of `from` [n]; the last may be shorter, and is then a copy.
template <class Entry, class Work> void each_word(const Entry* from, Entry* to, int64_t n, int threads, Work work) {
    each_channel((n + stretch - 1) / stretch, streams(to, 1, n, from, from), threads, [=](int64_t part, auto known) {
        const int64_t end = least((part + 1) * stretch, n);
        int64_t i = part * stretch;
        for (; i + word <= end; i += word) work(from + i, to + i, i / word, known);
        if (i == end) return;
        Entry last[word] = {};
        std::memcpy(last, from + i, sizeof(Entry) * size_t(end - i));
        work(last, last, i / word, Known<false>{});
        std::memcpy(to + i, last, sizeof(Entry) * size_t(end - i));
    });
}

}  // namespace

// y = max(x, 0) and its bits, of n entries in any order.
template <class Entry> void relu_forward(const Entry* x, int64_t n, Entry* y, uint64_t* positive, int threads) {
    each_word(x, y, n, threads, [=](const Entry* from, Entry* to, int64_t at, auto known) {
        const uint64_t bits = rectify_word<known.value>(from, to);
        if (positive) positive[at] = bits;
    });
}

template <class Entry>
void relu_backward(const Entry* grad_y, const uint64_t* positive, int64_t n, Entry* grad_x, int threads) {
    each_word(grad_y, grad_x, n, threads, [=](const Entry* from, Entry* to, int64_t at, auto known) {
        pass_word<known.value>(from, positive[at], to);
    });
}

SWAT_NORM(SWAT_INSTANTIATE, float, )
SWAT_NORM(SWAT_INSTANTIATE, bf16, )

}  // namespace torchswat::SWAT_ISA
