// Gathering the kept weights of one product in a single pass over the dense ones.
//
//     W [k][c][r][s]  --stage-->  the taps of a few result channels, in list order  --append-->  values, offsets
//
// 4 bytes are read and density*6 written a weight. A block of source channels is gathered by one thread, front to
// back, so nothing needs to be counted before.
#include "sparse_weights.h"

#include "buffer.h"
#include "kernels.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr float least_magnitude = 1e-45f;  // the smallest there is: a weight of zero is never kept
// So many at a time: a few cache lines of W, and stored long enough before they are loaded as vectors.
constexpr int staged_floats = 2048;

// Which weights of a block go where, before those that are dropped leave gaps. Lists are counted over the classes of a
// result channel; by pattern, all weights are one list here, in the order in which the tile has their sources.
struct Order {
    int taps, lists, channels;
    bool in_memory_order, a_tap_each;  // as a kernel lies in memory; every list has one tap
    Buffer<int> base, step;            // tap of source channel i stands at base + i*step
    Buffer<int> ends;                  // of each list
    Buffer<uint16_t> offsets;

    Order(const ConvShape& s, const Tiles& t, Product product, int channels)
        : taps(s.r * s.s), lists(t.lists == Lists::by_tap ? taps : t.classes()), channels(channels), base(taps),
          step(taps), ends(lists), offsets(size_t(channels) * taps + W) {
        const bool reversed = t.lists == Lists::by_pattern && product == Product::grad_input;
        in_memory_order = lists == 1 && !reversed;
        a_tap_each = t.lists == Lists::by_tap;
        int done = 0;
        for (int list = 0; list < lists; list++) {
            int members = 0;
            for (int tap = 0; tap < taps; tap++) {
                if (list_of(s, t, product, tap) == list) base[tap] = done + members++;
            }
            for (int tap = 0; tap < taps; tap++) {
                if (list_of(s, t, product, tap) == list) step[tap] = members;
            }
            ends[list] = done += members * channels;
        }
        for (int tap = 0; tap < taps; tap++) {
            if (reversed) base[tap] = taps - 1 - tap;
            const int offset = tap_of(s, t, product, tap / s.s, tap % s.s).offset;
            for (int i = 0; i < channels; i++) {
                offsets[base[tap] + i * step[tap]] = uint16_t((i * t.channel_floats + offset) / W);
            }
        }
    }

    static int list_of(const ConvShape& s, const Tiles& t, Product product, int tap) {
        const Tap found = tap_of(s, t, product, tap / s.s, tap % s.s);
        return t.lists == Lists::by_tap ? found.list : found.result_class;
    }
};

// The dense weights as a product sees them.
struct Dense {
    const float* weights;
    const uint8_t* mask;
    int64_t result_stride, source_stride;
};

// The weight, or zero where the mask drops it; without a branch, which would be guessed wrong.
template <bool masked> inline float kept(const float* weight, const uint8_t* mask, int tap) {
    if constexpr (!masked) return weight[tap];
    uint32_t bits;
    std::memcpy(&bits, weight + tap, sizeof bits);
    bits &= 0u - uint32_t(mask[tap] != 0);
    float result;
    std::memcpy(&result, &bits, sizeof bits);
    return result;
}

// Copies one kernel to its places. `known_taps`: the number of taps where it is small and common, or 0.
template <bool masked, int known_taps>
inline void stage_kernel(const float* weight, const uint8_t* mask, const Order& order, int i, float* to) {
    const int taps = known_taps ? known_taps : order.taps;
    if (order.in_memory_order) {
        to += i * taps;
        for (int tap = 0; tap < taps; tap++) to[tap] = kept<masked>(weight, mask, tap);
    } else if (order.a_tap_each) {
        for (int tap = 0; tap < taps; tap++) to[order.base.data[tap] + i] = kept<masked>(weight, mask, tap);
    } else {
        const int *base = order.base.data, *step = order.step.data;
        for (int tap = 0; tap < taps; tap++) to[base[tap] + i * step[tap]] = kept<masked>(weight, mask, tap);
    }
}

// Copies the weights from a block of source channels to `results` result channels, in list order.
template <bool masked, int known_taps>
void stage(const Dense& dense, const Order& order, int64_t at, int results, float* staged) {
    const int channels = order.channels, slots = channels * order.taps;
    const bool by_result = dense.result_stride > dense.source_stride;  // the order of the memory
    for (int outer = 0; outer < (by_result ? results : channels); outer++) {
        for (int inner = 0; inner < (by_result ? channels : results); inner++) {
            const int i = by_result ? inner : outer, result = by_result ? outer : inner;
            const int64_t from = at + i * dense.source_stride + result * dense.result_stride;
            const uint8_t* mask = masked ? dense.mask + from : nullptr;
            stage_kernel<masked, known_taps>(dense.weights + from, mask, order, i, staged + result * slots);
        }
    }
}

template <bool masked> void stage(const Dense& dense, const Order& order, int64_t at, int results, float* staged) {
    const auto run = order.taps == 9 ? stage<masked, 9> : order.taps == 1 ? stage<masked, 1> : stage<masked, 0>;
    run(dense, order, at, results, staged);
}

// Appends the weights that are not smaller than the threshold (NaN among them); returns how many. Up to W entries
// behind them may be written.
int append_kept(const float* weights, const uint16_t* offsets, int n, float threshold, float* to_values,
             uint16_t* to_offsets) {
    int count = 0;
#if defined(__AVX512F__)
    const __m512 limit = _mm512_set1_ps(threshold);
    for (int i = 0; i < n; i += W) {
        const __mmask16 inside = n - i < W ? __mmask16((1u << (n - i)) - 1) : __mmask16(0xffff);
        const __m512 weight = _mm512_maskz_loadu_ps(inside, weights + i);
        const __mmask16 kept = _mm512_mask_cmp_ps_mask(inside, _mm512_abs_ps(weight), limit, _CMP_NLT_UQ);
        const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets + i));
        const __m512i offset = _mm512_maskz_cvtepu16_epi32(inside, narrow);  // the unmasked form warns in GCC 12
        const __mmask16 kept_first = __mmask16((1u << __builtin_popcount(kept)) - 1);
        _mm512_storeu_ps(to_values + count, _mm512_maskz_compress_ps(kept, weight));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to_offsets + count),
                            _mm512_maskz_cvtepi32_epi16(kept_first, _mm512_maskz_compress_epi32(kept, offset)));
        count += __builtin_popcount(kept);
    }
#else
    for (int i = 0; i < n; i++) {
        to_values[count] = weights[i];
        to_offsets[count] = offsets[i];
        count += !(__builtin_fabsf(weights[i]) < threshold);
    }
#endif
    return count;
}

// Which of three weights are kept.
inline int pattern_of(const float* weights, float threshold) {
    int pattern = 0;
    for (int i = 0; i < 3; i++) pattern |= !(__builtin_fabsf(weights[i]) < threshold) << i;
    return pattern;
}

// Writes the kept ones of three weights; returns where they end.
inline float* append_three(const float* weights, int pattern, float* to) {
#if defined(__AVX512F__)
    const __mmask8 first = __mmask8((1u << __builtin_popcount(pattern)) - 1);
    _mm_mask_storeu_ps(to, first, _mm_maskz_compress_ps(__mmask8(pattern), _mm_maskz_loadu_ps(7, weights)));
    return to + __builtin_popcount(pattern);
#else
    for (int i = 0; i < 3; i++) {
        if (pattern >> i & 1) *to++ = weights[i];
    }
    return to;
#endif
}

// Appends the kept weights of rows of a kernel, sorted by their pattern; returns how many.
int sort_by_pattern(const float* weights, const uint16_t* offsets, int groups, float threshold, float* to_values,
                    uint16_t* to_offsets, int32_t* counts) {
    constexpr int most = cache_bytes / (trimmed_tile * trimmed_tile * int(sizeof(vf))) * 3;
    uint8_t found[most];
    int32_t members[patterns] = {};
    for (int group = 0; group < groups; group++) {
        found[group] = uint8_t(pattern_of(weights + 3 * group, threshold));
        members[found[group]]++;
    }
    float* value[patterns];
    uint16_t* offset[patterns];
    float* end = to_values;
    for (int pattern = 1; pattern < patterns; pattern++) {
        counts[pattern - 1] = members[pattern];
        value[pattern] = end;
        offset[pattern] = to_offsets;
        end += members[pattern] * __builtin_popcount(unsigned(pattern));
        to_offsets += members[pattern];
    }
    float nothing[1];
    uint16_t nowhere[most];
    value[0] = nothing;  // groups without a kept weight go there: a branch would be guessed wrong
    offset[0] = nowhere;
    for (int group = 0; group < groups; group++) {
        const int pattern = found[group];
        value[pattern] = append_three(weights + 3 * group, pattern, value[pattern]);
        *offset[pattern]++ = offsets[3 * group];
    }
    return int(end - to_values);
}

int64_t block_capacity(const ConvShape& s, const Tiles& t) {
    return (int64_t(t.block) * t.results * s.r * s.s + 2 * W - 1) / W * W;
}

struct Packing {
    const ConvShape& shape;
    const Tiles& tiles;
    Dense dense;
    float threshold;
    Order order, last_order;  // of a full block, of the last one
    int32_t* starts;
    float* values;
    uint16_t* offsets;

    // Appends `results` result channels of a block at `at`; returns where they end. `staged` is scratch.
    int64_t append(int block, int result, int results, int64_t at, float* staged) const {
        const Order& which = block + 1 < tiles.blocks ? order : last_order;
        const int first = block * tiles.block, slots = which.channels * which.taps;
        const int64_t from = first * dense.source_stride + result * dense.result_stride;
        const float* weights = dense.weights + from;
        if (staged) {
            (dense.mask ? stage<true> : stage<false>)(dense, which, from, results, staged);
            weights = staged;
        }
        int32_t* start = starts + block * block_starts(tiles) + int64_t(result) * tiles.classes() * tiles.starts();
        for (int i = 0; i < results; i++, weights += slots) {
            if (tiles.lists == Lists::by_pattern) {
                *start++ = int32_t(at);
                at += sort_by_pattern(weights, which.offsets.data, slots / 3, threshold, values + at, offsets + at,
                                      start);
                start += patterns - 1;
                continue;
            }
            for (int list = 0, done = 0; list < which.lists; done = which.ends.data[list++]) {
                *start++ = int32_t(at);
                at += append_kept(weights + done, which.offsets.data + done, which.ends.data[list] - done, threshold,
                               values + at, offsets + at);
            }
        }
        *start = int32_t(at);
        return at;
    }

    // All of the blocks [first, last), in the order in which the dense weights lie in memory; returns the number kept.
    int64_t blocks(int first, int last) const {
        const bool forward = dense.source_stride == order.taps;
        const bool staging = dense.mask || !order.in_memory_order || !forward;
        const int slots = order.channels * order.taps, few = staged_floats / slots;
        const int together = !staging || few < 1 ? 1 : few > tiles.results ? tiles.results : few;
        Buffer<float> scratch(size_t(together) * slots);
        float* staged = staging ? scratch.data : nullptr;
        Buffer<int64_t> at(last - first);
        const int64_t capacity = block_capacity(shape, tiles);
        for (int block = first; block < last; block++) at[block - first] = block * capacity;
        const int inner = forward ? last - first : 1;
        for (int outer = first; outer < last; outer += inner) {
            for (int result = 0; result < tiles.results; result += together) {
                const int results = result + together < tiles.results ? together : tiles.results - result;
                for (int block = outer; block < outer + inner; block++) {
                    at[block - first] = append(block, result, results, at[block - first], staged);
                }
            }
        }
        int64_t kept = 0;
        for (int block = first; block < last; block++) kept += at[block - first] - block * capacity;
        return kept;
    }
};

}  // namespace

int64_t weight_starts(ConvShape shape, int product) {
    const Tiles t = tiles_of(shape, Product(product));
    if (t.block_floats() / W > 1 << 16) invalid("A kernel of this size reaches further than 16-bit offsets do.");
    return t.blocks * block_starts(t);
}

int64_t weight_capacity(ConvShape shape, int product) {
    const Tiles t = tiles_of(shape, Product(product));
    return t.blocks * block_capacity(shape, t) + W;
}

int64_t pack_weights(ConvShape shape, const float* weights, const uint8_t* mask, float threshold, int product,
                     int32_t* starts, float* values, uint16_t* offsets, int threads) {
    const Product which = Product(product);
    const Tiles t = tiles_of(shape, which);
    const int64_t taps = shape.r * shape.s, filter = taps * shape.c;
    const bool forward = which == Product::forward;
    const Dense dense{weights, mask, forward ? filter : taps, forward ? taps : filter};
    const float limit = mask || !(threshold > least_magnitude) ? least_magnitude : threshold;
    const int last_block = t.channels - (t.blocks - 1) * t.block;
    const Packing packing{shape, t, dense, limit, {shape, t, which, t.block}, {shape, t, which, last_block},
                          starts, values, offsets};
    const int parts = threads < t.blocks ? threads : t.blocks;
    int64_t kept = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : kept)
    for (int part = 0; part < parts; part++) {
        kept += packing.blocks(part * t.blocks / parts, (part + 1) * t.blocks / parts);
    }
    return kept;
}

}  // namespace torchswat::SWAT_ISA
