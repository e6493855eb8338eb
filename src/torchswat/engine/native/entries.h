// From compressed activations to what the weight gradient runs over: for each slab, class and channel a list of kept
// entries, each a value and the 16-bit offset of its window in the packed output gradient.
//
// Values are used where they lie, in the order of the bits. With a stride they are copied, sorted by class: entries
// of (h + pad) % stride = a, (w + pad) % stride = b meet the same taps. Bytes an entry: 1/8 of bits read, 2 written
// for a kept one; with a stride 8 more.
#pragma once
#include "buffer.h"
#include "compress_lanes.h"
#include "slabs.h"

namespace torchswat::SWAT_ISA {

struct List {  // the kept entries of one (slab, class, channel)
    uint32_t begin, count;
};

struct Entries {
    const float* values;
    const uint16_t* offsets;  // of the window, in units of 8 bytes
    const List* lists;        // [slab][class][c]
};

struct Positions {
    Buffer<uint16_t> offset;  // [words * 16], from a slab's first position on
    Buffer<uint16_t> member;  // [classes][words], which positions of a word are of that class

    explicit Positions(const Plan& p) : offset(p.words * unit), member(p.classes * p.words) {
        std::memset(offset.data, 0, sizeof(uint16_t) * p.words * unit);
        std::memset(member.data, 0, sizeof(uint16_t) * p.words * p.classes);
        for (int64_t i = 0; i < p.area; ++i) {
            const int row = p.first_row(i / p.run);
            const int64_t at = p.packed_at(i, row) - p.packed_run(i / p.run, row);
            if (at * p.cell / 2 > 65535) invalid("grad_weight: 16-bit offsets do not reach over this kernel's width");
            offset.data[i] = uint16_t(at * p.cell / 2);
            const int a = p.rows.class_of(int(i / p.width)), b = p.columns.class_of(int(i % p.width));
            if (a < p.rows.classes && b < p.columns.classes)
                member.data[(a * p.columns.classes + b) * p.words + i / unit] |= uint16_t(1u << i % unit);
        }
    }
};

struct Channel {  // of the compressed activations
    int64_t c, channels, n;
    const uint16_t* bits;
    int64_t start, end;
};

// Appends the offsets of the entries in one word, and says how many; up to `room` places may be written.
static inline int64_t append_offsets(uint16_t* to, int64_t room, const uint16_t* offset, uint32_t shift,
                                     uint32_t word) {
#if defined(__AVX512BW__)
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(offset)));
    const __m512i moved = _mm512_add_epi32(wide, _mm512_set1_epi32(int(shift)));
    const __m256i kept = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(__mmask16(word), moved));
    const int count = __builtin_popcount(word);
    if (room >= unit) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), kept);
    else _mm256_mask_storeu_epi16(to, __mmask16((1u << count) - 1), kept);
    return count;
#else
#if defined(__AVX2__)
    if (room >= unit) {
        const int low = __builtin_popcount(word & 255);
        const __m128i add = _mm_set1_epi16(int16_t(shift));
        for (int half = 0; half < 2; ++half) {
            const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(offset + 8 * half));
            const uint64_t kept = compressed_lanes[word >> 8 * half & 255];
            const __m128i lanes = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(int64_t(kept)));
            const __m128i bytes = _mm_add_epi16(_mm_mullo_epi16(lanes, _mm_set1_epi16(0x202)), _mm_set1_epi16(0x100));
            const __m128i moved = _mm_shuffle_epi8(_mm_add_epi16(all, add), bytes);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + half * low), moved);
        }
        return low + __builtin_popcount(word >> 8);
    }
#endif
    (void)room;
    int64_t count = 0;
    for (; word; word &= word - 1) to[count++] = uint16_t(offset[__builtin_ctz(word)] + shift);
    return count;
#endif
}

// The values of those entries of `word` that are in `member`; all of them stand compressed at `from`.
static inline void append_values(float* to, const float* from, uint32_t word, uint32_t member) {
#if defined(__AVX512F__)
    const __m512 dense = _mm512_maskz_expandloadu_ps(__mmask16(word), from);
    const __mmask16 first = __mmask16((1u << __builtin_popcount(member)) - 1);
    _mm512_mask_storeu_ps(to, first, _mm512_maskz_compress_ps(__mmask16(member), dense));
#else
    for (; word; word &= word - 1, ++from)
        if (member & word & -word) *to++ = *from;
#endif
}

// A channel's lists where every entry meets the same window: the values are used where they lie.
static inline void list_in_place(const Plan& p, const Positions& positions, const Channel& channel, uint16_t* offsets,
                                 List* lists) {
    int64_t at = channel.start;
    for (int64_t i = 0; i < channel.n; ++i) {
        const int64_t part = i % p.block / p.samples, within = i % p.block % p.samples;
        const uint32_t shift = uint32_t(within * p.sample * p.cell / 2);
        for (int64_t r = 0; r < p.runs; ++r) {
            List& list = lists[p.slab(i / p.block, r, part) * channel.channels + channel.c];
            if (!within) list.begin = uint32_t(at);
            const int64_t end = smaller(p.words, (r + 1) * p.run / unit);
            for (int64_t word = r * p.run / unit; word < end; ++word)
                at += append_offsets(offsets + at, channel.end - at, positions.offset.data + word * unit, shift,
                                     channel.bits[word * channel.n + i]);
            list.count = uint32_t(at - list.begin);
        }
    }
}

// A channel's lists by class: the values are copied, sorted by class within each slab.
static inline void list_by_class(const Plan& p, const Positions& positions, const Channel& channel,
                                 const float* values, float* sorted, uint16_t* offsets, List* lists) {
    const float* read = values + channel.start;
    int64_t at = channel.start, last = 0;
    for (int64_t first = 0; first < channel.n; first = last) {
        const int64_t band = (first / p.block + 1) * p.block;  // its last sample; no slab goes beyond
        last = smaller(smaller(channel.n, first + p.samples), band);
        for (int64_t r = 0; r < p.runs; ++r) {
            const int64_t begin = r * p.run / unit, end = smaller(p.words, (r + 1) * p.run / unit);
            const int64_t slab = p.slab(first / p.block, r, first % p.block / p.samples);
            List* list = lists + slab * p.classes * channel.channels + channel.c;  // of class 0
            for (int k = 0; k < p.classes; ++k) {
                const uint16_t* member = positions.member.data + k * p.words;
                list[k * channel.channels].begin = uint32_t(at);
                for (int64_t i = first; i < last; ++i)
                    for (int64_t word = begin; word < end; ++word)
                        at += __builtin_popcount(channel.bits[word * channel.n + i] & member[word]);
            }
            for (int64_t i = first; i < last; ++i) {
                const uint32_t shift = uint32_t((i - first) * p.sample * p.cell / 2);
                for (int64_t word = begin; word < end; ++word) {
                    const uint32_t all = channel.bits[word * channel.n + i];
                    for (int k = 0; k < p.classes; ++k) {
                        const uint32_t member = positions.member.data[k * p.words + word], some = all & member;
                        if (!member) continue;
                        List& of_class = list[k * channel.channels];
                        const int64_t to = of_class.begin + of_class.count;
                        append_values(sorted + to, read, all, some);
                        of_class.count += uint32_t(
                            append_offsets(offsets + to, 0, positions.offset.data + word * unit, shift, some));
                    }
                    read += __builtin_popcount(all);
                }
            }
        }
    }
}

}  // namespace torchswat::SWAT_ISA
