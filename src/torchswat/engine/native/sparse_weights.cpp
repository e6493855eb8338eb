// Gathering the kept weights of one product in a single pass over the dense ones.
//
//     W [k][c][r][s]  --stage, but for forward-->  a few result channels side by side  --append-->  values, offsets
//
// The weights are taken from where they lie in the order of the lists, W at a time. Result channels of grad_input lie
// far apart for that, so a few of them are staged in the first-level cache before: [source][result][tap].
// 4 bytes are read and density*6 written a weight. A block of source channels is gathered by one thread, front to
// back, so nothing needs to be counted before.
#include "sparse_weights.h"

#include "buffer.h"
#include "kernels.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr float least_magnitude = 1e-45f;  // the smallest there is: a weight of zero is never kept
constexpr int staged_floats = 4096;        // at a time: a part of the first-level cache

// Which weights of a block go where, before those that are dropped leave gaps. Lists are counted over the classes of a
// result channel; by pattern, all weights are one list here, in the order in which the tile has their sources.
struct Order {
    int taps, lists, channels;
    bool in_memory_order;
    int direction;             // by pattern: from the first of three weights to the next in memory
    Buffer<int> places;        // in memory, of each weight from the first one on
    Buffer<int> group_places;  // of every third
    Buffer<int> ends;          // of each list
    Buffer<int> offsets;

    // `distance`: floats between source channels.
    Order(const ConvShape& s, const Tiles& t, Product product, int channels, int distance)
        : taps(s.r * s.s), lists(t.lists == Lists::by_tap ? taps : t.classes()), channels(channels),
          places(size_t(channels) * taps + W), group_places(size_t(channels) * taps / 3 + W), ends(lists), offsets(size_t(channels) * taps + W) {
        const bool reversed = t.lists == Lists::by_pattern && product == Product::grad_input;
        in_memory_order = lists == 1 && !reversed && (distance == taps || channels == 1);
        direction = reversed ? -1 : 1;
        std::memset(places.data, 0, sizeof(int) * (size_t(channels) * taps + W));
        std::memset(offsets.data, 0, sizeof(int) * (size_t(channels) * taps + W));
        int done = 0;
        for (int list = 0; list < lists; list++) {
            for (int i = 0; i < channels; i++) {
                for (int n = 0; n < taps; n++) {
                    const int tap = reversed ? taps - 1 - n : n;
                    const Tap found = tap_of(s, t, product, tap / s.s, tap % s.s);
                    if ((t.lists == Lists::by_tap ? found.list : found.result_class) != list) continue;
                    places[done] = i * distance + tap;
                    offsets[done++] = (i * t.channel_floats + found.offset) / W;
                }
            }
            ends[list] = done;
        }
        for (int i = 0; 3 * i < done; i++) group_places[i] = places[3 * i];
    }
};

// The dense weights as a product sees them.
struct Dense {
    const float* weights;
    const uint8_t* mask;
    int64_t result_stride, source_stride;
};

// Copies n weights, or zeros where the mask drops them.
void copy_kept(const float* weights, const uint8_t* mask, int64_t n, float* to) {
    if (mask) {
        for (int64_t i = 0; i < n; i++) to[i] = mask[i] ? weights[i] : 0.0f;
        return;
    }
    int64_t i = 0;
    for (; i + W <= n; i += W) storeu(to + i, loadu(weights + i));
    if (i < n) store_first(to + i, load_first(weights + i, int(n - i)), int(n - i));
}

// Marks the weights from `begin` to `end` of a filter that are not smaller than the threshold, NaN among them: one bit
// each, 16 to a word. A word that `begin` lies within belongs to the range before. Fetches the same of the filter that
// is `next`. Returns whether a NaN was met.
bool mark(const float* filter, int64_t begin, int64_t end, int64_t next, float threshold,
          uint16_t* bits) {
    constexpr int word = 16;
    int32_t least_key;
    std::memcpy(&least_key, &threshold, sizeof least_key);
    vi largest{};
    const auto mark_word = [&](const float* weights, int64_t count) __attribute__((always_inline)) {
        unsigned kept = 0;
        for (int part = 0; part < word && part < count; part += W) {
            const vf some = count >= word ? loadu(weights + part) : load_first(weights + part, int(count - part));
            const vi keys = reinterpret_cast<vi>(some) & 0x7fffffff;
            largest = keys > largest ? keys : largest;
            kept |= bits_of(keys >= least_key) << part;
        }
        return uint16_t(kept);
    };
    int64_t i = (begin + word - 1) / word * word;
    for (; i + word <= end; i += word) {
        __builtin_prefetch(filter + next + i, 0, 2);
        bits[i / word] = mark_word(filter + i, word);
    }
    if (i < end) bits[i / word] = mark_word(filter + i, end - i);
    return bits_of(largest > 0x7f800000) != 0;
}

// Which weights of one result channel were kept, W to a word, and how many before each word.
struct Kept {
    uint16_t* words;
    int* before;

    int until(int i) const { return before[i / W] + __builtin_popcount(words[i / W] & ((1u << i % W) - 1)); }
};

// Appends the weights of one result channel that are not smaller than the threshold (NaN among them), list after list;
// returns how many. Up to W entries behind them may be written.
template <bool in_memory_order>
int append_kept(const float* weights, const Order& order, float threshold, float* to_values, uint16_t* to_offsets,
                Kept kept) {
    const int n = order.channels * order.taps;
    const int *places = order.places.data, *offsets = order.offsets.data;
    int count = 0;
#if defined(__AVX512F__)
    const __m512 limit = _mm512_set1_ps(threshold);
    const __mmask16 all = 0xffff;  // the forms without a mask warn in GCC 12
    const auto append = [&](int i, __mmask16 inside) __attribute__((always_inline)) {
        const __m512 weight = in_memory_order ? _mm512_maskz_loadu_ps(inside, weights + i)
                                              : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside,
                                                                         _mm512_loadu_si512(places + i), weights, 4);
        const __mmask16 these = _mm512_mask_cmp_ps_mask(inside, _mm512_abs_ps(weight), limit, _CMP_NLT_UQ);
        const __m512i their_offsets = _mm512_maskz_compress_epi32(these, _mm512_loadu_si512(offsets + i));
        _mm512_storeu_ps(to_values + count, _mm512_maskz_compress_ps(these, weight));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to_offsets + count),
                            _mm512_maskz_cvtepi32_epi16(all, their_offsets));
        kept.words[i / W] = uint16_t(these);
        kept.before[i / W] = count;
        count += __builtin_popcount(these);
    };
    int i = 0;
    for (; i + W <= n; i += W) append(i, all);
    append(i, __mmask16(first_lanes(n - i)));
#else
    for (int i = 0; i <= n; i++) {
        if (i % W == 0) {
            kept.words[i / W] = 0;
            kept.before[i / W] = count;
        }
        if (i == n) break;
        const float weight = weights[in_memory_order ? i : places[i]];
        const int keep = !(__builtin_fabsf(weight) < threshold);
        to_values[count] = weight;
        to_offsets[count] = uint16_t(offsets[i]);
        kept.words[i / W] |= uint16_t(keep << i % W);
        count += keep;
    }
#endif
    return count;
}

// Finds which of each three weights are kept, W groups at a time, and lists the groups that keep any: their number
// and their pattern. Counts groups by pattern; returns how many are listed.
int find_patterns(const float* weights, const Order& order, int groups, float threshold, int32_t* listed,
                  int32_t* their_patterns, int32_t (&members)[patterns]) {
    int count = 0;
    for (int first = 0; first < groups; first += W) {
        const int lanes = groups - first < W ? groups - first : W;
        vi pattern{};
        for (int i = 0; i < 3; i++) {
            const float* from = weights + i * order.direction;
#if defined(__AVX512F__)
            const __mmask16 inside = __mmask16(first_lanes(lanes));
            const __m512i places = _mm512_loadu_si512(order.group_places.data + first);
            const __m512 weight = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, places, from, 4);
            const __mmask16 kept = _mm512_mask_cmp_ps_mask(inside, _mm512_abs_ps(weight), _mm512_set1_ps(threshold),
                                                           _CMP_NLT_UQ);
            pattern |= reinterpret_cast<vi>(_mm512_maskz_set1_epi32(kept, 1 << i));
#else
            for (int lane = 0; lane < lanes; lane++) {
                const float weight = from[order.group_places.data[first + lane]];
                pattern[lane] |= !(__builtin_fabsf(weight) < threshold) << i;
            }
#endif
        }
        for (int p = 1; p < patterns; p++) members[p] += __builtin_popcount(bits_of(pattern == p));
        const unsigned some = bits_of(pattern != 0);
        vi number{};
        for (int lane = 0; lane < W; lane++) number[lane] = first + lane;
        compress(listed + count, number, some);
        count += compress(their_patterns + count, pattern, some);
    }
    return count;
}

// Writes the kept ones of three weights, `direction` apart; returns where they end.
inline float* append_three(const float* weights, int direction, int pattern, float* to) {
#if defined(__AVX512F__)
    const __m128 in_memory = _mm_maskz_loadu_ps(7, weights + (direction < 0 ? -2 : 0));
    const __m128 three = direction < 0 ? _mm_shuffle_ps(in_memory, in_memory, 0b11000110) : in_memory;
    const __mmask8 first = __mmask8((1u << __builtin_popcount(unsigned(pattern))) - 1);
    _mm_mask_storeu_ps(to, first, _mm_maskz_compress_ps(__mmask8(pattern), three));
    return to + __builtin_popcount(unsigned(pattern));
#else
    for (int i = 0; i < 3; i++) {
        if (pattern >> i & 1) *to++ = weights[i * direction];
    }
    return to;
#endif
}

// Appends the kept weights of rows of a kernel, sorted by their pattern; returns how many.
int sort_by_pattern(const float* weights, const Order& order, float threshold, float* to_values,
                    uint16_t* to_offsets, int32_t* counts) {
    constexpr int most = cache_bytes / (trimmed_tile * trimmed_tile * int(sizeof(vf))) * 3 + W;
    int32_t listed[most], their_patterns[most], members[patterns] = {};
    const int found = find_patterns(weights, order, order.channels * order.taps / 3, threshold, listed,
                                    their_patterns, members);
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
    for (int i = 0; i < found; i++) {
        const int group = listed[i], pattern = their_patterns[i];
        const float* first = weights + order.group_places.data[group];
        value[pattern] = append_three(first, order.direction, pattern, value[pattern]);
        *offset[pattern]++ = uint16_t(order.offsets.data[3 * group]);
    }
    return int(end - to_values);
}

int64_t block_capacity(const ConvShape& s, const Tiles& t) {
    return (int64_t(t.block) * t.results * s.r * s.s + 2 * W - 1) / W * W;
}

// Result channels that are staged together; forward takes one at a time, from where it lies.
int staged_together(const ConvShape& s, const Tiles& t, Product product) {
    const int few = staged_floats / (t.block * s.r * s.s);
    return product == Product::forward || few < 1 ? 1 : few < t.results ? few : t.results;
}

struct Packing {
    const ConvShape& shape;
    const Tiles& tiles;
    Product product;
    Dense dense;
    float threshold;
    int together;
    Order order, last_order;  // of a full block, of the last one
    int32_t* starts;
    float* values;
    uint16_t *offsets, *bits;

    // The weights from the sources of a block to `results` result channels, as [source][result][tap].
    const float* stage(const Order& which, int block, int result, int results, float* staged) const {
        const int64_t from = block * tiles.block * dense.source_stride + result * dense.result_stride;
        const uint8_t* mask = dense.mask ? dense.mask + from : nullptr;
        if (product == Product::forward) {
            if (!mask) return dense.weights + from;
            copy_kept(dense.weights + from, mask, which.channels * which.taps, staged);
            return staged;
        }
        for (int i = 0; i < which.channels; i++) {
            const int64_t row = i * dense.source_stride;
            const float* weights = dense.weights + from + row;
            for (int n = results * which.taps; n < 2 * results * which.taps; n += 16) {
                __builtin_prefetch(weights + n, 0, 2);  // of the next results
            }
            copy_kept(weights, mask ? mask + row : nullptr, results * which.taps, staged + i * together * which.taps);
        }
        return staged;
    }

    // Appends `results` result channels of a block at `at`; returns where they end. `staged` and `kept` are scratch.
    int64_t append(int block, int result, int results, int64_t at, float* staged, Kept kept) const {
        const Order& which = block + 1 < tiles.blocks ? order : last_order;
        const float* weights = stage(which, block, result, results, staged);
        const auto append_row = which.in_memory_order ? append_kept<true> : append_kept<false>;
        int32_t* start = starts + block * block_starts(tiles) + int64_t(result) * tiles.classes() * tiles.starts();
        for (int i = 0; i < results; i++, weights += which.taps) {
            *start++ = int32_t(at);
            if (tiles.lists == Lists::by_pattern) {
                at += sort_by_pattern(weights, which, threshold, values + at, offsets + at, start);
                start += patterns - 1;
                continue;
            }
            const int count = append_row(weights, which, threshold, values + at, offsets + at, kept);
            for (int list = 1; list < which.lists; list++) {
                *start++ = int32_t(at) + kept.until(which.ends.data[list - 1]);
            }
            at += count;
        }
        *start = int32_t(at);
        return at;
    }

    // Marks the weights of a result channel from the sources of blocks [first, last); whether there is a NaN.
    bool mark_kept(int result, int first, int last) const {
        const int64_t filter = dense.result_stride, from = first * tiles.block * dense.source_stride;
        const int64_t end = last == tiles.blocks ? filter : last * tiles.block * dense.source_stride;
        return mark(dense.weights + result * filter, from, end, filter, threshold,
                    bits + result * ((filter + 15) / 16));
    }

    // All of the blocks [first, last), in the order in which the dense weights lie in memory; returns the number kept,
    // or less than zero where a NaN was marked.
    int64_t blocks(int first, int last) const {
        const size_t slots = size_t(order.channels) * order.taps;
        Buffer<float> staged(together * slots + W);
        Buffer<uint16_t> words(slots / W + 1);
        Buffer<int> before(slots / W + 1);
        const Kept marks{words.data, before.data};
        Buffer<int64_t> at(last - first);
        const int64_t capacity = block_capacity(shape, tiles);
        for (int block = first; block < last; block++) at[block - first] = block * capacity;
        const int inner = product == Product::forward ? last - first : 1;
        bool nan = false;
        for (int outer = first; outer < last; outer += inner) {
            for (int result = 0; result < tiles.results; result += together) {
                const int results = result + together < tiles.results ? together : tiles.results - result;
                if (bits) nan |= mark_kept(result, first, last);
                for (int block = outer; block < outer + inner; block++) {
                    at[block - first] = append(block, result, results, at[block - first], staged.data, marks);
                }
            }
        }
        int64_t kept = 0;
        for (int block = first; block < last; block++) kept += at[block - first] - block * capacity;
        return nan ? -1 - shape.weights() : kept;
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

// Returns how many are kept. With `bits`, which only forward takes, and only without a mask, they are marked there as
// well, [k][ceil(c*r*s / 16)], and the result is negative where one of them is a NaN.
int64_t pack_weights(ConvShape shape, const float* weights, const uint8_t* mask, float threshold, int product,
                     int32_t* starts, float* values, uint16_t* offsets, uint16_t* bits, int threads) {
    const Product which = Product(product);
    const Tiles t = tiles_of(shape, which);
    const int64_t taps = shape.r * shape.s, filter = taps * shape.c;
    const bool forward = which == Product::forward;
    if (bits && (mask || !forward)) invalid("pack_weights: bits go with the forward product and without a mask.");
    const Dense dense{weights, mask, forward ? filter : taps, forward ? taps : filter};
    const float limit = mask || !(threshold > least_magnitude) ? least_magnitude : threshold;
    const int last_block = t.channels - (t.blocks - 1) * t.block;
    const int together = staged_together(shape, t, which), distance = together * int(taps);
    const Packing packing{shape, t, which, dense, limit, together, {shape, t, which, t.block, distance},
                          {shape, t, which, last_block, distance}, starts, values, offsets, bits};
    const int parts = threads < t.blocks ? threads : t.blocks;
    int64_t kept = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : kept)
    for (int part = 0; part < parts; part++) {
        kept += packing.blocks(part * t.blocks / parts, (part + 1) * t.blocks / parts);
    }
    return kept;
}

}  // namespace torchswat::SWAT_ISA
