// Batch norm's input as the backward pass finds it: whole, or a narrower copy of its deviation from the mean.
//
//     float32    x itself                                                     4 bytes an entry
//     bfloat16   x - mean, rounded to nearest even: off by 2^-9 of itself     2
//     uint8      q of x - mean = low + step * q, low and step a channel:      1
//                off by half a step, 1/510 of the channel's range
//
// The deviation and not x is rounded, so that a large mean costs nothing. All three take no more than a few operations
// an entry beside the passes over memory that batch norm makes anyway.
#pragma once
#include "bfloat16.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {

typedef uint8_t vb __attribute__((vector_size(W)));

// GCC 12 takes such a vector apart in memory where it converts it itself; the masked forms do not warn there.
inline vi widen_entry(vb x) {
#if defined(__AVX512F__)
    return reinterpret_cast<vi>(_mm512_maskz_cvtepu8_epi32(__mmask16(-1), reinterpret_cast<__m128i>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<vi>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(reinterpret_cast<int64_t>(x))));
#else
    return __builtin_convertvector(x, vi);
#endif
}
inline vi widen_entry(vh x) { return reinterpret_cast<vi>(widen_bits(x)); }

// The first `lanes` entries of a narrow vector; those beyond read as zero and are left alone in memory.
template <class Vector, class Entry> inline vi load_narrow(const Entry* from, int lanes) {
    Vector x{};
    if (lanes >= W) std::memcpy(&x, from, sizeof x);
    else std::memcpy(&x, from, sizeof(Entry) * lanes);
    return widen_entry(x);
}
template <class Vector, class Entry> inline void store_narrow(Entry* to, Vector x, int lanes) {
    if (lanes >= W) std::memcpy(to, &x, sizeof x);
    else std::memcpy(to, &x, sizeof(Entry) * lanes);
}

// ---- one channel, written -------------------------------------------------------------------------------------------

struct Unwritten {
    void put(int64_t, vf, int) const {}
};

struct ToBfloat16 {
    uint16_t* to;
    vf mean;

    void put(int64_t i, vf x, int lanes) const {
        store_narrow(to + i, narrow(x - mean), lanes);
    }
};

struct ToBytes {
    uint8_t* to;
    vf mean, per_step, zero;  // q = (x - mean) / step + zero, cut off

    void put(int64_t i, vf x, int lanes) const {
        const vi q = __builtin_convertvector((x - mean) * per_step + zero, vi);
        store_narrow(to + i, __builtin_convertvector(q, vb), lanes);
    }
};

// ---- one channel, read: deviations from the mean --------------------------------------------------------------------

struct OfFloat32 {
    const float* x;
    vf mean;

    vf deviation(int64_t i, int lanes) const { return load_first(x + i, lanes) - mean; }
};

struct OfBfloat16 {
    const uint16_t* x;

    vf deviation(int64_t i, int lanes) const {
        return reinterpret_cast<vf>(load_narrow<vh>(x + i, lanes) << 16);
    }
};

struct OfBytes {
    const uint8_t* x;
    vf step, low;

    vf deviation(int64_t i, int lanes) const {
        return __builtin_convertvector(load_narrow<vb>(x + i, lanes), vf) * step + low;
    }
};

// ---- the range of a channel -----------------------------------------------------------------------------------------

struct Range {
    float low, high;
};

// How a range is cut into 255 steps: x - mean = low + step * q and q = (x - mean) * per_step + zero, cut off.
struct Steps {
    float step, low, per_step, zero;
};

inline Steps steps_of(Range range, float mean) {
    const float low = range.low - mean, width = (range.high - mean) - low;
    if (!(width > 1e-30f)) return {0, low, 0, 0};
    return {width / 255, low, 255 / width, 0.5f - low * (255 / width)};
}

inline Range range_of(const float* x, int64_t length) {
    vf low = splat(x[0]), high = low;
    int64_t i = 0;
    for (; i + W <= length; i += W) {
        const vf value = loadu(x + i);
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    Range range{x[0], x[0]};
    for (int lane = 0; lane < W; ++lane) {
        range.low = low[lane] < range.low ? low[lane] : range.low;
        range.high = high[lane] > range.high ? high[lane] : range.high;
    }
    for (; i < length; ++i) {
        range.low = x[i] < range.low ? x[i] : range.low;
        range.high = x[i] > range.high ? x[i] : range.high;
    }
    return range;
}

}  // namespace torchswat::SWAT_ISA
