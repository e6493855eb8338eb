// A flat array as one bit an entry and the values of the entries that are kept, in order; and back.
//
//     bits [ceil(n / 64)]   entry i is bit i % 64 of word i / 64          values [count]   starts [parts + 1]
//
// Two passes, so that `values` is as long as it must be and no longer: the first marks and counts (4 bytes read an
// entry, 1/8 written), the second gathers (4 read, 4 * density written; what the first has read is often in the cache
// still). The array is cut into parts, each of which one thread has; `starts` says where the values of each begin.
#include "bfloat16.h"
#include "buffer.h"
#include "kernels.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t word = 64, part_words = 1024, part = part_words * word;

int64_t parts_of(int64_t n) { return (n + part - 1) / part; }

// Bits of the entries x[0..entries) that are kept: marked, or without a mask not smaller than the limit; never a zero.
template <class Entry> uint64_t marks(const Entry* x, const uint8_t* mask, float limit, int64_t entries) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < entries; i += W) {
        const int lanes = int(least(W, entries - i));
        const vf value = load_first(x + i, lanes);
        unsigned kept = bits_of(mask ? (value != vf{}) : at_least(value, above_zero(limit)));
        if (mask) {
            unsigned marked = 0;
            for (int lane = 0; lane < lanes; ++lane) marked |= unsigned(mask[i + lane] != 0) << lane;
            kept &= marked;
        }
        bits |= uint64_t(kept & first_lanes(lanes)) << i;
    }
    return bits;
}

// Appends the marked lanes; what is behind them may be written, but for what is at `end`.
template <class Entry> Entry* append(Entry* to, const Entry* end, vf x, unsigned kept) {
    const int count = __builtin_popcount(kept);
    const vf packed = packed_lanes(x, kept);
    if (end - to >= W) storeu(to, packed);
    else store_first(to, packed, count);
    return to + count;
}

// Where the values of each part begin, by the bits alone; returns how many there are.
int64_t starts_of(const uint64_t* bits, int64_t n, int64_t* starts) {
    const int64_t parts = parts_of(n), words = (n + word - 1) / word;
    starts[0] = 0;
    for (int64_t p = 0; p < parts; ++p) {
        int64_t count = 0;
        for (int64_t w = p * part_words; w < least(words, (p + 1) * part_words); ++w)
            count += __builtin_popcountll(bits[w]);
        starts[p + 1] = starts[p] + count;
    }
    return starts[parts];
}

// The values from `from` on go to the lanes whose bit is set; nothing is read at `end`.
inline vf expanded_entries(const float* from, const float* end, unsigned bits) { return expanded(from, end, bits); }
inline vf expanded_entries(const bf16* from, const bf16* end, unsigned bits) {
    const vf next = load_first(from, int(least(W, end - from)));
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_maskz_expand_ps(__mmask16(bits), reinterpret_cast<__m512>(next)));
#else
    alignas(64) float values[W];
    store(values, next);
    return expanded(values, values + W, bits);
#endif
}

template <class Entry>
int64_t mark(const Entry* x, const uint8_t* mask, float limit, int64_t n, uint64_t* bits, int64_t* starts,
                  int threads) {
    const int64_t parts = parts_of(n);
#pragma omp parallel for schedule(static) num_threads(threads) if (parts > 1)
    for (int64_t p = 0; p < parts; ++p) {
        int64_t count = 0;
        for (int64_t i = p * part; i < least(n, (p + 1) * part); i += word) {
            const uint64_t found = marks(x + i, mask ? mask + i : nullptr, limit, least(word, n - i));
            bits[i / word] = found;
            count += __builtin_popcountll(found);
        }
        starts[p + 1] = count;
    }
    starts[0] = 0;
    for (int64_t p = 0; p < parts; ++p) starts[p + 1] += starts[p];
    return starts[parts];
}

template <class Entry>
void gather(const Entry* x, const uint64_t* bits, const int64_t* starts, int64_t n, Entry* values, int threads) {
    const int64_t parts = parts_of(n);
#pragma omp parallel for schedule(static) num_threads(threads) if (parts > 1)
    for (int64_t p = 0; p < parts; ++p) {
        Entry *to = values + starts[p], *end = values + starts[p + 1];
        for (int64_t i = p * part; i < least(n, (p + 1) * part); i += word) {
            const uint64_t kept = bits[i / word];
            const int64_t entries = least(word, n - i);
            for (int64_t lane = 0; lane < entries; lane += W) {
                const int lanes = int(least(W, entries - lane));
                to = append(to, end, load_first(x + i + lane, lanes), unsigned(kept >> lane) & all_lanes);
            }
        }
    }
}

template <class Entry>
int64_t keep_both(const Entry* x, const uint8_t* mask, float limit, int64_t n, uint64_t* bits, Entry* values, int64_t room,
             int threads) {
    Buffer<int64_t> starts(size_t(parts_of(n) + 1));
    const int64_t count = mark(x, mask, limit, n, bits, starts.data, threads);
    if (count <= room) gather(x, bits, starts.data, n, values, threads);
    return count;
}

template <class Entry>
void scatter(const Entry* values, const uint64_t* bits, int64_t n, Entry* x, int threads) {
    const int64_t parts = parts_of(n);
    Buffer<int64_t> starts(parts + 1);
    starts_of(bits, n, starts.data);
#pragma omp parallel for schedule(static) num_threads(threads) if (parts > 1)
    for (int64_t p = 0; p < parts; ++p) {
        const Entry *from = values + starts.data[p], *end = values + starts.data[parts];
        for (int64_t i = p * part; i < least(n, (p + 1) * part); i += word) {
            const uint64_t kept = bits[i / word];
            const int64_t entries = least(word, n - i);
            for (int64_t lane = 0; lane < entries; lane += W) {
                const unsigned here = unsigned(kept >> lane) & all_lanes;
                store_first(x + i + lane, expanded_entries(from, end, here), int(least(W, entries - lane)));
                from += __builtin_popcount(here);
            }
        }
    }
}

}  // namespace

int64_t kept_parts(int64_t n) { return parts_of(n); }

// What mark_kept returns and writes to `starts`, where the bits are there already.
int64_t count_marked(const uint64_t* bits, int64_t n, int64_t* starts) { return starts_of(bits, n, starts); }

// Marks what is kept of x [n]: what `mask` says or, without one, all of at least `limit` > 0; zeros never are. Returns
// how many; starts is [kept_parts(n) + 1].
int64_t mark_kept(const float* x, const uint8_t* mask, float limit, int64_t n, uint64_t* bits, int64_t* starts,
                  int threads) {
    return mark(x, mask, limit, n, bits, starts, threads);
}
int64_t mark_kept_bf16(const bf16* x, const uint8_t* mask, float limit, int64_t n, uint64_t* bits, int64_t* starts,
                       int threads) {
    return mark(x, mask, limit, n, bits, starts, threads);
}

void gather_kept(const float* x, const uint64_t* bits, const int64_t* starts, int64_t n, float* values, int threads) {
    gather(x, bits, starts, n, values, threads);
}
void gather_kept_bf16(const bf16* x, const uint64_t* bits, const int64_t* starts, int64_t n, bf16* values,
                      int threads) {
    gather(x, bits, starts, n, values, threads);
}

// Both at once, where there is room for `room` values; returns how many are kept, and gathers nothing if they are more.
int64_t keep_flat(const float* x, const uint8_t* mask, float limit, int64_t n, uint64_t* bits, float* values,
                  int64_t room, int threads) {
    return keep_both(x, mask, limit, n, bits, values, room, threads);
}

// The inverse of both: x [n] with zeros where nothing was kept.
void scatter_kept(const float* values, const uint64_t* bits, int64_t n, float* x, int threads) {
    scatter(values, bits, n, x, threads);
}
void scatter_kept_bf16(const bf16* values, const uint64_t* bits, int64_t n, bf16* x, int threads) {
    scatter(values, bits, n, x, threads);
}

}  // namespace torchswat::SWAT_ISA
