// Which magnitude of bfloat16 entries is the k-th largest, exactly.
//
// A magnitude is a key of 15 bits, so a histogram of all keys is small; but it costs a nanosecond an entry. The
// threshold moves by about one per cent an iteration, a step or two of bfloat16 (there are 128 in an octave). So one
// pass counts what lies at or above each of `ways` neighbouring keys around the last one, 2 W entries at a time; a
// threshold beyond them shows in the counts, and then the histogram has its turn.
//
//     bytes read: 2 n; operations a vector of 2 W entries: 2 for each of the `ways` keys
#include "bfloat16.h"
#include "buffer.h"
#include "kernels.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {
namespace {

typedef int16_t vs __attribute__((vector_size(4 * W)));  // 2 W keys
typedef int16_t vs_any __attribute__((vector_size(4 * W), aligned(2), may_alias));

constexpr int ways = 8, below = 4;             // keys that are tried, of them below the last threshold
constexpr int magnitude = 0x7fff, infinity = 0x7f80;
constexpr int64_t piece = 2 * W * 16384;       // entries whose counts stay in 16 bits
constexpr int64_t few = 1 << 14;               // entries that one thread does

struct Counts {
    int64_t at_least[ways];
    int largest;
};

float value_of(int key) {
    const uint32_t bits = uint32_t(key) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

int key_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return int(bits >> 16) & magnitude;
}

// The least key that is not below the value, which may lie between two of them: an odd batch has found it in float32.
int key_from(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return int((bits + 0xffff) >> 16) & magnitude;
}

void add_piece(const uint16_t* values, int64_t n, int first, Counts& counts) {
    vs counted[ways] = {}, largest{};
    const auto visit = [&](vs bits) __attribute__((always_inline)) {
        const vs keys = bits & int16_t(magnitude);
        largest = keys > largest ? keys : largest;
#pragma GCC unroll 8
        for (int way = 0; way < ways; ++way) counted[way] -= keys >= int16_t(first + way);
    };
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) visit(*reinterpret_cast<const vs_any*>(values + i));
    if (i < n) {
        vs rest{};  // zeros are below every key that is tried
        std::memcpy(&rest, values + i, sizeof(uint16_t) * size_t(n - i));
        visit(rest);
    }
    for (int lane = 0; lane < 2 * W; ++lane) {
        for (int way = 0; way < ways; ++way) counts.at_least[way] += uint16_t(counted[way][lane]);
        if (largest[lane] > counts.largest) counts.largest = largest[lane];
    }
}

// How many entries are at or above `ways` keys from `first` (at least 1) on.
Counts count_around(const uint16_t* values, int64_t n, int first, int threads) {
    Counts all{};
    const int64_t pieces = (n + piece - 1) / piece;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
        Counts mine{};
        for (int64_t p = pieces * t / threads; p < pieces * (t + 1) / threads; ++p)
            add_piece(values + p * piece, least(piece, n - p * piece), first, mine);
#pragma omp critical(torchswat_select_bf16)
        {
            for (int way = 0; way < ways; ++way) all.at_least[way] += mine.at_least[way];
            if (mine.largest > all.largest) all.largest = mine.largest;
        }
    }
    return all;
}

// The k-th largest key, how many are as large at least, and the largest of all.
struct Found {
    int key;
    int64_t count;
    int largest;
};

Found by_histogram(const uint16_t* values, int64_t n, int64_t k, int threads) {
    constexpr int64_t buckets = magnitude + 1;
    Buffer<uint32_t> histograms{size_t(2 * buckets * threads)};  // two interleaved: runs of one key do not wait
    std::memset(histograms.data, 0, sizeof(uint32_t) * size_t(2 * buckets * threads));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
        uint32_t* mine = histograms.data + 2 * buckets * t;
        for (int64_t i = n * t / threads; i < n * (t + 1) / threads; ++i)
            ++mine[buckets * (i & 1) + (values[i] & magnitude)];
    }
    Found found{magnitude + 1, 0, -1};
    while (found.count < k && found.key > 0) {
        --found.key;
        int64_t here = 0;
        for (int part = 0; part < 2 * threads; ++part) here += histograms[size_t(buckets * part + found.key)];
        found.count += here;
        if (here && found.largest < 0) found.largest = found.key;
    }
    return found;
}

Found search_around(const uint16_t* values, int64_t n, int64_t k, int last, int threads) {
    const int first = last - below < 1 ? 1 : last - below;
    const Counts counts = count_around(values, n, first, threads);
    for (int way = ways - 2; way >= 0; --way)
        if (counts.at_least[way] >= k && counts.at_least[way + 1] < k)
            return {first + way, counts.at_least[way], counts.largest};
    return by_histogram(values, n, k, threads);
}

}  // namespace

// How many entries are of at least the limit, which is positive; and whether a NaN was met.
Threshold count_kept_bf16(const bf16* values, int64_t n, float limit, int threads) {
    const int key = key_from(limit);
    const auto* bits = reinterpret_cast<const uint16_t*>(values);
    const Counts counts = count_around(bits, n, key < 1 ? 1 : key, n <= few ? 1 : threads);
    return {limit, counts.at_least[0], 0, counts.largest > infinity};
}

// The selection of the k largest magnitudes as select_operand makes it; entries equal to the k-th are all kept, for many
// are. The least limit is the smallest positive value: zeros are never kept.
Selected select_bf16(double* memory, const bf16* values, int64_t n, int64_t k, double sparsity, bool due, bool frozen,
                     int threads) {
    const double last = memory[0];
    const float smallest = value_of(1);
    if (!due && last >= 0) return {float(last) > smallest ? float(last) : smallest, -1, -1, false};
    if (k < 1 || k > n) invalid("select_bf16: the rank must be between 1 and the number of entries.");
    const auto* bits = reinterpret_cast<const uint16_t*>(values);
    if (n <= few) threads = 1;
    const int hint = last > 0 ? key_of(float(last)) : 0;
    const Found found = hint ? search_around(bits, n, k, hint, threads) : by_histogram(bits, n, k, threads);
    const float threshold = value_of(found.key);
    if (!frozen) memory[0] = threshold, memory[1] = sparsity;
    const int64_t kept = found.key > 0 ? found.count : -1;  // zeros among them are not counted apart
    return {threshold > smallest ? threshold : smallest, -1, kept, found.largest > infinity};
}

}  // namespace torchswat::SWAT_ISA
