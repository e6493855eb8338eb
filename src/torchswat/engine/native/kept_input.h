// Batch norm's input as the backward pass finds it: whole, or a narrower copy of its deviation from the mean.
//
//     whole      x itself                                                     4 bytes an entry, or 2 of bfloat16
//     bfloat16   x - mean, rounded to nearest even: off by 2^-9 of itself     2, where x is float32
//     uint8      q of x - mean = low + step * q, low and step a channel:      1
//                off by half a step, 1/510 of the channel's range
//
// The deviation and not x is rounded, so that a large mean costs nothing. All three take no more than a few operations
// an entry beside the passes over memory that batch norm makes anyway.
#pragma once
#include "twice.h"

namespace torchswat::SWAT_ISA {

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

// ---- one channel, written: 2W entries of x, or the last few of them ---------------------------------------------------

struct Unwritten {
    void put(int64_t, Two) const {}
    void put(int64_t, vf, int) const {}
};

struct ToBfloat16 {  // of float32
    uint16_t* to;
    vf mean;

    void put(int64_t i, vf x, int lanes) const { store_narrow(to + i, narrow(x - mean), lanes); }
    void put(int64_t i, Two x) const {
        put(i, x.a, W);
        put(i + W, x.b, W);
    }
};

template <class Entry> struct ToBytes {
    uint8_t* to;
    vf mean, per_step, zero;  // q = (x - mean) / step + zero, cut off

    vi byte_of(vf x) const { return __builtin_convertvector((x - mean) * per_step + zero, vi); }
    void put(int64_t i, vf x, int lanes) const {
        store_narrow(to + i, __builtin_convertvector(byte_of(x), vb), lanes);
    }
    void put(int64_t i, Two x) const {
        put_bytes_twice(to + i, byte_of(x.a), byte_of(x.b), static_cast<const Entry*>(nullptr));
    }
};

// ---- one channel, read: deviations from the mean of 2W entries, or of the last few ------------------------------------

template <class Entry> struct Whole {
    const Entry* x;
    vf mean;

    vf deviation(int64_t i, int lanes) const { return load_first(x + i, lanes) - mean; }
    Two deviations(int64_t i) const {
        return each(widened(twice_at(x + i)), [this](vf entry) { return entry - mean; });
    }
};

struct OfBfloat16 {  // of float32
    const uint16_t* x;

    vf deviation(int64_t i, int lanes) const {
        return reinterpret_cast<vf>(load_narrow<vh>(x + i, lanes) << 16);
    }
    Two deviations(int64_t i) const { return {deviation(i, W), deviation(i + W, W)}; }
};

template <class Entry> struct OfBytes {
    const uint8_t* x;
    vf step, low;

    vf value_of(vi byte) const { return __builtin_convertvector(byte, vf) * step + low; }
    vf deviation(int64_t i, int lanes) const { return value_of(load_narrow<vb>(x + i, lanes)); }
    Two deviations(int64_t i) const {
        if constexpr (sizeof(Entry) == 2) {  // pairs
            const vi bytes = load_narrow<vh>(reinterpret_cast<const uint16_t*>(x + i), W);
            return {value_of(bytes & 0xff), value_of(bytes >> 8)};
        } else {
            return {deviation(i, W), deviation(i + W, W)};
        }
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

template <class Entry> Range range_of(const Entry* x, int64_t length) {
    vf low = splat(load_first(x, 1)[0]), high = low;
    Range range{low[0], low[0]};
    const auto take = [&range](vf lowest, vf highest, int lanes) {
        for (int lane = 0; lane < lanes; ++lane) {
            range.low = lowest[lane] < range.low ? lowest[lane] : range.low;
            range.high = highest[lane] > range.high ? highest[lane] : range.high;
        }
    };
    int64_t i = 0;
    for (; i + W <= length; i += W) {
        const vf value = loadu(x + i);
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    take(low, high, W);
    if (i == length) return range;
    const vf rest = load_first(x + i, int(length - i));
    take(rest, rest, int(length - i));
    return range;
}

}  // namespace torchswat::SWAT_ISA
