// The bits of a float without its sign order like an integer, so a magnitude is a "key" of 31 bits:
//
//     exponent 8 | mantissa 23        0 = zero ... 0x7f800000 = infinity < NaN
#pragma once
#include "kernels.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {

typedef uint32_t Key;
typedef Key FloatBits __attribute__((may_alias));  // to read floats as keys where they lie
constexpr Key magnitude = 0x7fffffff, infinity = 0x7f800000;
constexpr int64_t chunk = 1 << 14;  // entries a thread takes at a time

static inline Key key_of(float value) {
    Key bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & magnitude;
}

static inline float value_of(Key key) {
    float value;
    std::memcpy(&value, &key, sizeof value);
    return value;
}

static inline vi load_keys(const float* values) {
    return *reinterpret_cast<const vi_any*>(values) & int32_t(magnitude);
}

static inline Key largest_lane(vi keys) {
    int32_t largest = keys[0];
    for (int lane = 1; lane < W; ++lane) largest = keys[lane] > largest ? keys[lane] : largest;
    return Key(largest);
}

// A parallel region costs some microseconds, and far more where another process has the core: none for few entries.
static inline int threads_for(int64_t entries, int threads) {
    constexpr int64_t worth_a_thread = 1 << 17;
    return int(least(threads, entries / worth_a_thread + 1));
}

// Calls part(t) for each thread t < threads.
template <class Part> void for_threads(int threads, const Part& part) {
    if (threads == 1) return part(0);  // even a region of one thread costs 0.2 us
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) part(t);
}

static inline void check_rank(int64_t n, int64_t k) {
    if (n < 1) invalid("selection: the array is empty.");
    if (k < 1 || k > n) invalid("selection: k must lie between 1 and the number of entries.");
}

// Keys between which the k-th largest is looked for: low < key <= high.
struct Range {
    Key low, high;
};

// Where the k-th largest lies that was `last` an iteration ago; empty without a hint.
Range range_around(float last);

// The exact k-th largest of n >= k >= 1 values, without a hint (selection.cpp).
Threshold search(const float* values, int64_t n, int64_t k, int threads);

}  // namespace torchswat::SWAT_ISA
