// Gathering the kept weights of both products in a single pass over the dense ones.
//
//     W [k][c][r][s]  --stage, but for forward-->  a few result channels side by side  --append-->  values, offsets
//
// The weights are taken from where they lie in the order of the lists, W at a time. Result channels of grad_input lie
// far apart for that, so a few of them are staged in the first-level cache before: [source][result][tap].
// 4 bytes are read and density*12 written a weight. Threads share the input channels: whole blocks of forward's
// sources, and a stretch of grad_input's results in each of its blocks, so nothing needs to be counted before.
#include "sparse_weights.h"

#include "buffer.h"
#include "fours.h"
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
        Buffer<Tap> found(taps);
        for (int tap = 0; tap < taps; tap++) found[tap] = tap_of(s, t, product, tap / s.s, tap % s.s);
        Buffer<int> members(taps);  // of a list
        int done = 0;
        for (int list = 0; list < lists; list++) {
            int count = 0;
            for (int n = 0; n < taps; n++) {
                const int tap = reversed ? taps - 1 - n : n;
                if ((t.lists == Lists::by_tap ? found[tap].list : found[tap].result_class) == list)
                    members[count++] = tap;
            }
            for (int i = 0; i < channels; i++) {
                for (int n = 0; n < count; n++) {
                    places[done] = i * distance + members[n];
                    offsets[done++] = (i * t.channel_floats + found[members[n]].offset) / W;
                }
            }
            ends[list] = done;
        }
        for (int i = 0; 3 * i < done; i++) group_places[i] = places[3 * i];
    }
};

struct Dense {
    const float* weights;
    const uint8_t* mask;
};

// Bits of the first lanes that are marked.
unsigned marked_lanes(const uint8_t* marks, int lanes) {
#if defined(__SSE2__)
    __m128i bytes = _mm_setzero_si128();
    std::memcpy(&bytes, marks, size_t(lanes < W ? lanes : W));
    return ~unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()))) & first_lanes(lanes);
#else
    unsigned bits = 0;
    for (int lane = 0; lane < lanes; lane++) bits |= unsigned(marks[lane] != 0) << lane;
    return bits;
#endif
}

// Pairs of weights: n of one source channel with those of the next (null where there is none), rounded, with zeros
// where a weight is dropped. Returns how many are not.
int64_t copy_pairs(const float* first, const float* second, const uint8_t* mask, const uint8_t* second_mask, int64_t n,
                   float threshold, float* to) {
    const vf limit = splat(threshold);
    const auto kept = [&](const float* weights, const uint8_t* marks, int64_t i, int lanes, int64_t& count) {
        const vf x = load_first(weights + i, lanes);
        unsigned bits = bits_of(at_least(x, limit));
        if (marks) bits = bits_of(x != vf{}) & marked_lanes(marks + i, lanes);
        bits &= first_lanes(lanes);
        count += __builtin_popcount(bits);
        return keep(x, bits);
    };
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += W) {
        const int lanes = int(least(W, n - i));
        const vf low = kept(first, mask, i, lanes, count);
        const vf high = second ? kept(second, second_mask, i, lanes, count) : vf{};
        store_first(to + i, pair_up(low, high), lanes);
    }
    return count;
}

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

constexpr int word = 16;  // weights

// Marks the weights from `begin` to `end` of a filter that are not smaller than the threshold, NaN among them: one bit
// each. `begin` is at a word. Fetches the same of the filter that is `next`. Returns whether a NaN was met.
bool mark(const float* filter, int64_t begin, int64_t end, int64_t next, float threshold, uint16_t* bits) {
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
    int64_t i = begin;
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

// Which lanes are listed: weights that are not smaller than the threshold, NaN among them; pairs and fours that are not
// zero.
template <class M> vi lanes_listed(vf x, vf threshold) {
    if constexpr (M::by_bits) return reinterpret_cast<vi>(x) != 0;
    else return at_least(x, threshold);
}
template <class M> unsigned listed_lanes(vf x, vf threshold) { return bits_of(lanes_listed<M>(x, threshold)); }

template <class M> int is_listed(const float& weight, float threshold) {
    int32_t bits, limit;
    std::memcpy(&bits, &weight, sizeof bits);
    std::memcpy(&limit, &threshold, sizeof limit);
    return M::by_bits ? bits != 0 : (bits & 0x7fffffff) >= limit;
}

// Appends the weights of one result channel that are listed, list after list; returns how many. Up to W entries behind
// them may be written.
template <class M, bool in_memory_order>
int append_kept(const float* weights, const Order& order, float threshold, float* to_values, uint16_t* to_offsets,
                Kept kept) {
    const int n = order.channels * order.taps;
    const int *places = order.places.data, *offsets = order.offsets.data;
    int count = 0;
#if defined(__AVX512F__)
    const vf limit = splat(threshold);
    const __mmask16 all = 0xffff;  // the forms without a mask warn in GCC 12
    const auto append = [&](int i, __mmask16 inside) __attribute__((always_inline)) {
        const __m512 weight = in_memory_order ? _mm512_maskz_loadu_ps(inside, weights + i)
                                              : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside,
                                                                         _mm512_loadu_si512(places + i), weights, 4);
        const __mmask16 these = __mmask16(inside & listed_lanes<M>(reinterpret_cast<vf>(weight), limit));
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
#elif defined(__AVX2__)
    const vf limit = splat(threshold);
    const auto append = [&](int i, int lanes) __attribute__((always_inline)) {
        __m256 weight = _mm256_setzero_ps();
        if constexpr (in_memory_order) weight = reinterpret_cast<__m256>(load_first(weights + i, lanes));
        else weight = _mm256_i32gather_ps(weights, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(places + i)), 4);
        const unsigned these = listed_lanes<M>(reinterpret_cast<vf>(weight), limit) & first_lanes(lanes);
        storeu(to_values + count, packed_lanes(reinterpret_cast<vf>(weight), these));
        const __m256i order_of = lanes_of(compressed_lanes[these]);
        const __m256i theirs = _mm256_permutevar8x32_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets + i)), order_of);
        const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packus_epi32(theirs, theirs), 0b1000);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to_offsets + count), _mm256_castsi256_si128(narrow));
        kept.words[i / W] = uint16_t(these);
        kept.before[i / W] = count;
        count += __builtin_popcount(these);
    };
    int i = 0;
    for (; i + W <= n; i += W) append(i, W);
    append(i, n - i);
#else
    for (int i = 0; i <= n; i++) {
        if (i % W == 0) {
            kept.words[i / W] = 0;
            kept.before[i / W] = count;
        }
        if (i == n) break;
        const float weight = weights[in_memory_order ? i : places[i]];
        const int keep = is_listed<M>(weight, threshold);
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
template <class M>
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
            const __mmask16 kept = __mmask16(inside & listed_lanes<M>(reinterpret_cast<vf>(weight), splat(threshold)));
            pattern |= reinterpret_cast<vi>(_mm512_maskz_set1_epi32(kept, 1 << i));
#elif defined(__AVX2__)
            const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), lane);
            const __m256i places =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(order.group_places.data + first));
            const __m256 weight = _mm256_mask_i32gather_ps(_mm256_setzero_ps(), from, places,
                                                           _mm256_castsi256_ps(inside), 4);
            const vi large = lanes_listed<M>(reinterpret_cast<vf>(weight), splat(threshold));
            pattern |= large & reinterpret_cast<vi>(inside) & (1 << i);
#else
            for (int lane = 0; lane < lanes; lane++) {
                pattern[lane] |= is_listed<M>(from[order.group_places.data[first + lane]], threshold) << i;
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
template <class M>
int sort_by_pattern(const float* weights, const Order& order, float threshold, float* to_values,
                    uint16_t* to_offsets, int32_t* counts) {
    constexpr int most = cache_bytes / (trimmed_tile * trimmed_tile * int(sizeof(vf))) * 3 + W;
    int32_t listed[most], their_patterns[most], members[patterns] = {};
    const int found = find_patterns<M>(weights, order, order.channels * order.taps / 3, threshold, listed,
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

constexpr int most_parts = 64;  // threads, each with a stretch of its own in every block of grad_input

int64_t block_capacity(const ConvShape& s, const Tiles& t) {
    return (int64_t(t.block) * t.results * s.r * s.s + (most_parts + 1) * W - 1) / W * W;
}

// The lists of one product, and the tables by which they are made.
template <class M> struct Lister {
    const ConvShape& shape;
    const Tiles tiles;
    const bool forward;
    const Dense dense;
    const float threshold;
    const int taps, together;  // result channels that are staged together; forward takes one, from where it lies
    const Order order, last_order;  // of a full block, of the last one
    int32_t* starts;
    float* values;
    uint16_t* offsets;

    Lister(const ConvShape& s, Product product, Dense dense, float threshold, PackedWeights to)
        : shape(s), tiles(tiles_of(s, product, M::channels)), forward(product == Product::forward), dense(dense),
          threshold(threshold), taps(s.r * s.s), together(forward ? 1 : staged_together()),
          order(s, tiles, product, tiles.block, together * taps),
          last_order(s, tiles, product, tiles.channels - (tiles.blocks - 1) * tiles.block, together * taps),
          starts(to.starts), values(to.values), offsets(to.offsets) {}

    int staged_together() const {
        const int few = staged_floats / (tiles.block * taps);
        return few < 1 ? 1 : few < tiles.results ? few : tiles.results;
    }

    int64_t slots() const { return int64_t(tiles.block) * taps; }  // of a result channel in a block
    int64_t result_stride() const { return int64_t(taps) * (forward ? shape.c : 1); }
    int64_t source_stride() const { return int64_t(taps) * (forward ? 1 : shape.c); }
    int64_t beginning(int block) const { return block * block_capacity(shape, tiles); }

    int sources() const { return forward ? shape.c : shape.k; }

    // Pairs of the weights from the sources of a block to `results` result channels, as [pair][result][tap].
    int64_t stage_pairs(const Order& which, int block, int result, int results, float* staged) const {
        int64_t kept = 0;
        for (int i = 0; i < which.channels; i++) {
            const int source = 2 * (block * tiles.block + i);
            const int64_t from = source * source_stride() + result * result_stride(), next = from + source_stride();
            const bool paired = source + 1 < sources();
            const float* weights = dense.weights + from;
            for (int n = results * taps; n < 2 * results * taps; n += 16) {
                __builtin_prefetch(weights + n, 0, 2);  // of the next results
                if (paired) __builtin_prefetch(dense.weights + next + n, 0, 2);
            }
            const uint8_t *mask = dense.mask ? dense.mask + from : nullptr, *next_mask = mask ? dense.mask + next : nullptr;
            kept += copy_pairs(weights, paired ? dense.weights + next : nullptr, mask, next_mask, results * taps,
                               threshold, staged + i * together * taps);
        }
        return kept;
    }

    // The weights from the sources of a block to `results` result channels, as [source][result][tap].
    const float* stage(const Order& which, int block, int result, int results, float* staged) const {
        const int64_t from = block * tiles.block * source_stride() + result * result_stride();
        const uint8_t* mask = dense.mask ? dense.mask + from : nullptr;
        if (forward) {
            if (!mask) return dense.weights + from;
            copy_kept(dense.weights + from, mask, which.channels * taps, staged);
            return staged;
        }
        for (int i = 0; i < which.channels; i++) {
            const int64_t row = i * source_stride();
            const float* weights = dense.weights + from + row;
            for (int n = results * taps; n < 2 * results * taps; n += 16) {
                __builtin_prefetch(weights + n, 0, 2);  // of the next results
            }
            copy_kept(weights, mask ? mask + row : nullptr, results * taps, staged + i * together * taps);
        }
        return staged;
    }

    // Appends `results` result channels of a block at `at`, which moves to where they end; returns how many weights are
    // kept.
    int64_t append(int block, int result, int results, int64_t& at, float* staged, Kept kept) const {
        const Order& which = block + 1 < tiles.blocks ? order : last_order;
        const float* weights = staged;
        const int64_t before = at;
        int64_t of_pairs = 0;
        if constexpr (M::channels == 2) of_pairs = stage_pairs(which, block, result, results, staged);
        else weights = stage(which, block, result, results, staged);
        const auto append_row = which.in_memory_order ? append_kept<M, true> : append_kept<M, false>;
        int32_t* start = starts + block * block_starts(tiles) + int64_t(result) * tiles.classes() * tiles.starts();
        for (int i = 0; i < results; i++, weights += taps) {
            if (tiles.lists == Lists::by_pattern) {
                *start++ = int32_t(at);
                at += sort_by_pattern<M>(weights, which, threshold, values + at, offsets + at, start);
                start += patterns - 1;
                continue;
            }
            const int count = append_row(weights, which, threshold, values + at, offsets + at, kept);
            for (int list = 0; list < which.lists; list++) {
                *start++ = int32_t(at) + (list ? kept.until(which.ends[list - 1]) : 0);
                if (tiles.lists == Lists::one) *start++ = int32_t(at) + kept.until(which.ends[list]);
            }
            at += count;
            if (tiles.lists == Lists::by_tap) *start++ = int32_t(at);
        }
        return M::channels == 2 ? of_pairs : at - before;
    }
};

// One thread's part: the weights of input channels [first, last), for either product or both.
template <class M> struct Part {
    const ConvShape& shape;
    const Lister<M> *forward, *grad_input;
    uint16_t* bits;
    int first, last, number;
    Buffer<float> staged;
    Buffer<uint16_t> words;
    Buffer<int> before;
    Buffer<int64_t> at;  // of forward's blocks

    Part(const ConvShape& s, const Lister<M>* forward, const Lister<M>* grad_input, uint16_t* bits, int first, int last,
         int number)
        : shape(s), forward(forward), grad_input(grad_input), bits(bits), first(first), last(last), number(number),
          staged(scratch()), words(scratch() / W + 1), before(scratch() / W + 1),
          at(forward ? forward->tiles.blocks : 0) {}

    size_t scratch() const {
        const int64_t a = forward ? forward->slots() : 0;
        const int64_t b = grad_input ? grad_input->slots() * grad_input->together : 0;
        return size_t(a > b ? a : b) + W;
    }

    // The filters of one block of grad_input at a time: it finds them in the cache, where forward left them.
    int64_t run(bool& nan) {
        const int64_t block_size = grad_input ? M::channels * grad_input->tiles.block : shape.k;
        int64_t kept = 0;
        if (forward) for (int b = 0; b < forward->tiles.blocks; b++) at[b] = forward->beginning(b);
        for (int k = 0, block = 0; k < shape.k; k += block_size, block++) {
            const int end = int(least(k + block_size, shape.k));
            if (forward) for (int filter = k; filter < end; filter++) kept += list_filter(filter, nan);
            if (grad_input) list_inputs(block);
        }
        return kept;
    }

    int64_t list_filter(int filter, bool& nan) {
        const int64_t taps = forward->taps, size = forward->result_stride();
        if (bits) {  // a word that two threads share is the first one's
            const int64_t begin = (first * taps + word - 1) / word * word;
            const int64_t end = least((last * taps + word - 1) / word * word, size);
            nan |= mark(forward->dense.weights + filter * size, begin, end, size, forward->threshold,
                        bits + filter * ((size + word - 1) / word));
        }
        int64_t kept = 0;
        const int block = M::channels * forward->tiles.block;
        for (int b = first / block; b * block < last; b++)
            kept += forward->append(b, filter, 1, at[b], staged.data, {words.data, before.data});
        return kept;
    }

    void list_inputs(int block) {
        int64_t to = grad_input->beginning(block) + first * grad_input->slots() + number * W;
        for (int c = first; c < last; c += grad_input->together) {
            const int results = int(least(grad_input->together, last - c));
            grad_input->append(block, c, results, to, staged.data, {words.data, before.data});
        }
    }
};

int64_t starts_of(const Tiles& t) {
    if (t.block_floats() / W > 1 << 16) invalid("A kernel of this size reaches further than 16-bit offsets do.");
    return t.blocks * block_starts(t);
}

int64_t capacity_of(const ConvShape& shape, const Tiles& t) { return t.blocks * block_capacity(shape, t) + W; }

template <class M>
Packed pack(const ConvShape& shape, Dense dense, float threshold, PackedWeights forward, PackedWeights grad_input,
            uint16_t* bits, int threads) {
    const float limit = dense.mask || !(threshold > least_magnitude) ? least_magnitude : threshold;
    const Lister<M> of_forward(shape, Product::forward, dense, limit, forward);
    const Lister<M> of_grad_input(shape, Product::grad_input, dense, limit, grad_input);
    const int unit = forward.starts ? M::channels * of_forward.tiles.block : 1, units = (shape.c + unit - 1) / unit;
    const int parts = int(least(least(threads, units), most_parts));
    int64_t kept = 0;
    bool nan = false;
#pragma omp parallel for num_threads(threads) reduction(+ : kept) reduction(|| : nan)
    for (int part = 0; part < parts; part++) {
        const int first = part * units / parts * unit, last = int(least((part + 1) * units / parts * unit, shape.c));
        Part<M> mine(shape, forward.starts ? &of_forward : nullptr, grad_input.starts ? &of_grad_input : nullptr, bits,
                     first, last, part);
        kept += mine.run(nan);
    }
    return {kept, nan};
}

}  // namespace

int64_t weight_starts(ConvShape shape, int product) { return starts_of(tiles_of(shape, Product(product))); }
int64_t weight_capacity(ConvShape shape, int product) { return capacity_of(shape, tiles_of(shape, Product(product))); }
int64_t pair_starts(const ConvShape& shape, Product product) { return starts_of(tiles_of(shape, product, 2)); }
int64_t pair_capacity(const ConvShape& shape, Product product) {
    return capacity_of(shape, tiles_of(shape, product, 2));
}

// Either product may be left out (no `starts`). With `bits`, which goes with forward and without a mask, what is kept
// is marked there as well, [k][ceil(c*r*s / 16)], and NaN among it is looked for. Forward counts what is kept.
Packed pack_weights(ConvShape shape, const float* weights, const uint8_t* mask, float threshold,
                    PackedWeights forward, PackedWeights grad_input, uint16_t* bits, int threads) {
    if (bits && (mask || !forward.starts)) invalid("pack_weights: bits go with forward and without a mask.");
    return pack<Singles>(shape, {weights, mask}, threshold, forward, grad_input, bits, threads);
}

// The same as pairs of bfloat16.
Packed pack_pairs(const ConvShape& shape, const float* weights, const uint8_t* mask, float threshold,
                  PackedWeights forward, PackedWeights grad_input, int threads) {
    return pack<Pairs>(shape, {weights, mask}, threshold, forward, grad_input, nullptr, threads);
}

// Fours of int8 that are not zero, for `conv_fours`; channels of the shape are counted in fours.
void pack_fours(const ConvShape& shape, const float* weights, PackedWeights to, int threads) {
    pack<Fours>(shape, {weights, nullptr}, 0.0f, to, {}, nullptr, threads);
}

}  // namespace torchswat::SWAT_ISA
