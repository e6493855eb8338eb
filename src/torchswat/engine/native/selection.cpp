// Which magnitude is the k-th largest.
//
// Magnitudes are compared as integers, their keys (keys.h). The k-th largest lies in a range of keys, low < key <= high:
//
//     0 ------------------ low ======== high ------------- infinity
//           smaller              inside         greater
//
// One pass over the array counts what is greater and what equals low, and copies what is inside. If greater < k <=
// greater + inside, the k-th largest is among the copies, where bisection finds it (kth_of_few). The range comes from
//
//     the last threshold (kth_largest_near)    3 % to either side
//     a sample (kth_largest)                   four standard deviations to either side of the sample's quantile
//
// A range that missed shows in the counts; then the sample has its turn, and after it a histogram of 2048 buckets over
// the whole array, which is slow (1.5 ns an entry and pass) and cannot miss. A few entries are all inside.
//
//     bytes read: 4 n, and 4 n more for each range that missed; written: about 0.2 n, into the cache
//     operations an entry: 6 (key, two or three comparisons, compress, maximum), and half as many for the bisection
//
// Measured on an AMD Zen 4 (2 cores, AVX-512, shared with other work: the least of many runs), one thread, normal
// values, k = n / 5, in microseconds; before, everything up to 32768 entries went through the histogram:
//
//     entries               1,000   5,000   30,000   235,200   2,097,152   8,388,608
//     before                  5.3    14.5       68        82         601        2686
//     kth_largest             1.3     3.1        9        44         304        1410
//     kth_largest_near        0.5     1.0        4        27         234        1140      (last off by 1 %)
//     count_kept (a pass)     0.4     0.7        3        19         163         870
//
// Counting what compress_count counts in the same pass was considered and left out: that pass is 16-20 % of search,
// count and fill of a (128, 64, 32, 32) activation, and the counters and places would take part of it back.
//
// Keys are integers and counts are sums, so nothing depends on the order or number of threads.
#include "buffer.h"
#include "keys.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t few = 2048;  // bisected as a whole: a sample would cost more
constexpr int bucket_bits = 11, buckets = 1 << bucket_bits;

int bits_to_hold(Key span) { return span ? 32 - __builtin_clz(span) : 0; }

int64_t square_root(int64_t x) {
    int64_t root = 0;
    while ((root + 1) * (root + 1) <= x) ++root;
    return root;
}

// The key that was looked for, how many are greater and how many equal to it.
struct Found {
    Key key;
    int64_t greater, equal;
};

// ---- a few keys: bisection ------------------------------------------------------------------------------------------

int64_t count_at_least(const Key* keys, int64_t n, Key candidate) {
    if (candidate > magnitude) return 0;  // negative as a lane
    const vi limit = splat_int(int32_t(candidate));
    vi count{};
    for (int64_t i = 0; i < n; i += W) count -= *reinterpret_cast<const vi_any*>(keys + i) >= limit;
    return sum_lanes(count);
}

void fill_last_vector(Key* keys, int64_t n) { std::memset(keys + n, 0xff, sizeof(Key) * W); }  // -1: below all keys

// The k-th largest of n >= k keys, all inside the range. The keys are overwritten, and up to 2 W behind them. Those
// that cannot be it any more are thrown out now and then.
Found kth_of_few(Key* keys, int64_t n, int64_t k, Range range) {
    constexpr int rounds = 4;  // from one throwing out to the next
    Key found = range.low + 1;
    int64_t greater = 0;
    fill_last_vector(keys, n);
    for (int bit = bits_to_hold(range.high - found) - 1, round = 1; bit >= 0; --bit, ++round) {
        const Key candidate = found + (Key(1) << bit);
        if (candidate <= range.high && count_at_least(keys, n, candidate) >= k - greater) found = candidate;
        if (round % rounds || n <= 8 * W) continue;
        const Key end = found + (Key(1) << bit) - 1;
        const vi low = splat_int(int32_t(found)), high = splat_int(int32_t(end < range.high ? end : range.high));
        int64_t inside = 0;
        vi above{};
        for (int64_t i = 0; i < n; i += W) {
            const vi these = *reinterpret_cast<const vi_any*>(keys + i);
            const vi larger = these > high;
            above -= larger;
            inside += compress(reinterpret_cast<int32_t*>(keys) + inside, these, bits_of((these >= low) & ~larger));
        }
        greater += sum_lanes(above);
        n = inside;
        fill_last_vector(keys, n);
    }
    const int64_t rest = count_at_least(keys, n, found + 1);
    return {found, greater + rest, count_at_least(keys, n, found) - rest};
}

// ---- the whole array: one pass with a range -------------------------------------------------------------------------

// What one pass over the array counts; equals of the low end only where these are asked for.
struct Tally {
    int64_t greater = 0, equal = 0, inside = 0;
    Key largest = 0;
};

// Adds a chunk of n values to the tally, and copies those inside the range to `inside` (room for n + W). No branch
// skips the copy where nothing is inside: it would be predicted wrongly too often.
template <bool equals> void split(const float* values, int64_t n, Range range, Tally& tally, Key* inside) {
    const vi low = splat_int(int32_t(range.low)), high = splat_int(int32_t(range.high));
    vi equal{}, largest{};
    int64_t count = 0, greater = 0;
    const auto visit = [&](vi keys) {
        const unsigned above = bits_of_greater(keys, high), within = bits_of_greater(keys, low) & ~above;
        greater += __builtin_popcount(above);
        if (equals) equal -= keys == low;
        largest = keys > largest ? keys : largest;
        count += compress(reinterpret_cast<int32_t*>(inside) + count, keys, within);
    };
    int64_t i = 0;
    for (; i + W <= n; i += W) visit(load_keys(values + i));
    if (i < n) {
        vi keys = splat_int(-1);  // the lanes that are not there: below all keys
        for (int lane = 0; i + lane < n; ++lane) keys[lane] = int32_t(key_of(values[i + lane]));
        visit(keys);
    }
    tally.greater += greater;
    tally.equal += sum_lanes(equal);
    tally.inside += count;
    if (largest_lane(largest) > tally.largest) tally.largest = largest_lane(largest);
}

// All chunks split; the keys inside end in `inside` in any order, but for those beyond its `room`.
template <bool equals>
Tally split_all(const float* values, int64_t n, Range range, Key* inside, int64_t room, int threads) {
    Tally total;
    int64_t used = 0;
    const auto part = [&](int t) {
        alignas(64) Key stage[chunk + W];
        const int64_t chunks = (n + chunk - 1) / chunk;
        Tally mine;
        for (int64_t c = chunks * t / threads; c < chunks * (t + 1) / threads; ++c) {
            const int64_t before = mine.inside;
            split<equals>(values + c * chunk, least(chunk, n - c * chunk), range, mine, stage);
            const int64_t count = mine.inside - before;
            const int64_t at = __atomic_fetch_add(&used, count, __ATOMIC_RELAXED);
            if (at < room) std::memcpy(inside + at, stage, sizeof(Key) * size_t(least(count, room - at)));
        }
#pragma omp critical(torchswat_split)
        {
            total.greater += mine.greater;
            total.equal += mine.equal;
            total.inside += mine.inside;
            if (mine.largest > total.largest) total.largest = mine.largest;
        }
    };
    for_threads(threads, part);
    return total;
}

// Looks for the k-th largest in the range and, with `equals`, at its low end; returns whether it is there.
template <bool equals>
bool search_range(const float* values, int64_t n, int64_t k, Range range, int threads, Threshold& result) {
    const int64_t room = n / 4 + W;
    Buffer<Key> inside{size_t(room + 2 * W)};
    const Tally tally = split_all<equals>(values, n, range, inside.data, room, threads);
    const bool nan = tally.largest > infinity;
    const int64_t missing = k - tally.greater;
    if (missing > 0 && missing <= tally.inside && tally.inside <= room) {
        const Found found = kth_of_few(inside.data, tally.inside, missing, range);
        result = {value_of(found.key), tally.greater + found.greater, found.equal, nan};
        return true;
    }
    result = {value_of(range.low), tally.greater + tally.inside, tally.equal, nan};
    return missing > tally.inside && missing <= tally.inside + tally.equal;
}

// ---- without a hint: a range from a sample --------------------------------------------------------------------------

uint64_t hash(uint64_t x) {  // splitmix64's finaliser: every bit of the output depends on every one of the input
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Copies the keys of `samples` entries, out of as many equal stretches, at places that the seed decides. `together`
// neighbours come from each stretch: one miss of the cache serves them all.
void draw(const float* values, int64_t n, int64_t samples, int together, uint64_t seed, Key* sample, int threads) {
    const int64_t stretches = samples / together;
    const double length = double(n - together + 1) / double(stretches);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < stretches; ++i) {
        const double within = double(hash(seed + 0x9e3779b97f4a7c15u * uint64_t(i + 1)) >> 32) / 4294967296.0;
        const float* from = values + int64_t((double(i) + within) * length);
        for (int j = 0; j < together; ++j) sample[i * together + j] = key_of(from[j]);
    }
}

constexpr Range everything{Key(-1), magnitude};

// Keys of 2^bits entries, out of as many equal stretches, at places that the golden ratio spreads evenly over these: a
// stride of the array's own finds no rhythm in them.
void draw_evenly(const float* values, int64_t n, int bits, Key* sample) {
    for (int64_t i = 0; i < int64_t(1) << bits; ++i) {
        const int64_t from = i * n >> bits, length = ((i + 1) * n >> bits) - from;
        sample[i] = key_of(values[from + int64_t((uint64_t(uint32_t(i) * 0x9e3779b9u) * uint64_t(length)) >> 32)]);
    }
}

// Two roots of n are enough: a larger sample costs more than the entries that a larger range copies.
Range sampled_range(const float* values, int64_t n, int64_t k) {
    int bits = 8;
    while (bits < 14 && (int64_t(1) << 2 * bits) < 4 * n) ++bits;
    const int64_t samples = int64_t(1) << bits;
    Buffer<Key> sample{size_t(samples + 2 * W)}, again{size_t(samples + 2 * W)};
    draw_evenly(values, n, bits, sample.data);
    std::memcpy(again.data, sample.data, sizeof(Key) * size_t(samples));
    const int64_t rank = int64_t(double(k) / double(n) * double(samples));
    const int64_t margin = 4 * square_root(int64_t(double(rank) * double(samples - rank) / double(samples))) + 4;
    Range range{0, magnitude};
    if (rank - margin >= 1) range.high = kth_of_few(sample.data, samples, rank - margin, everything).key;
    if (rank + margin <= samples) range.low = kth_of_few(again.data, samples, rank + margin, everything).key;
    return range;
}

// ---- what cannot miss -----------------------------------------------------------------------------------------------

// Two interleaved counts a bucket: runs of one bucket (zeros after a ReLU) do not wait for their own last increment.
struct Histogram {
    uint32_t counts[2][buckets];
};

// The keys in [low, low + 2^bits), counted by their `shift`-ed distance from low.
void count_buckets(const float* values, int64_t n, Key low, int shift, Key used, Histogram& histogram) {
    const FloatBits* keys = reinterpret_cast<const FloatBits*>(values);
    for (int64_t i = 0; i < n; ++i) {
        const Key bucket = ((keys[i] & magnitude) - low) >> shift;
        if (bucket < used) ++histogram.counts[i & 1][bucket];
    }
}

// The k-th largest by narrowing the range of all keys to a bucket at a time.
Found by_histogram(const float* values, int64_t n, int64_t k, int threads) {
    Buffer<Histogram> histograms{size_t(threads)};
    Key low = 0;
    int64_t greater = 0;
    for (int bits = 31;;) {
        const int shift = bits > bucket_bits ? bits - bucket_bits : 0;
        const Key used = Key(1) << (bits - shift);
        std::memset(histograms.data, 0, sizeof(Histogram) * threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (int part = 0; part < threads; ++part) {
            const int64_t begin = n * part / threads, end = n * (part + 1) / threads;
            count_buckets(values + begin, end - begin, low, shift, used, histograms[part]);
        }
        Key bucket = used;
        int64_t inside = 0;
        while (greater + inside < k && bucket > 0) {
            greater += inside;
            --bucket;
            inside = 0;
            for (int part = 0; part < threads; ++part)
                inside += int64_t(histograms[part].counts[0][bucket]) + histograms[part].counts[1][bucket];
        }
        low += bucket << shift;
        if (shift == 0) return {low, greater, inside};
        bits = shift;
    }
}

// Copies all keys and bisects the copy.
Threshold search_few(const float* values, int64_t n, int64_t k) {
    alignas(64) Key keys[few + 2 * W];
    vi largest{}, smallest = splat_int(int32_t(magnitude));
    for (int64_t i = 0; i < n; i += W) {
        const int lanes = int(least(W, n - i));
        const vi these = reinterpret_cast<vi>(load_first(values + i, lanes)) & int32_t(magnitude);
        *reinterpret_cast<vi*>(keys + i) = these;
        largest = these > largest ? these : largest;
        smallest = these < smallest ? these : smallest;  // zero if a vector is not full
    }
    const Key high = largest_lane(largest), low = magnitude - largest_lane(int32_t(magnitude) - smallest);
    const Found found = kth_of_few(keys, n, k, {low - 1, high});
    return {value_of(found.key), found.greater, found.equal, high > infinity};
}

}  // namespace

// Where the k-th largest lies that was `last` an iteration ago; empty without a hint.
Range range_around(float last) {
    constexpr float step = 1.03f;
    if (!(last > 0 && key_of(last) < infinity)) return {0, 0};
    return {key_of(last / step), key_of(last * step)};
}

Threshold search(const float* values, int64_t n, int64_t k, int threads) {
    if (n <= few) return search_few(values, n, k);
    threads = threads_for(n, threads);
    Threshold result;
    if (search_range<true>(values, n, k, sampled_range(values, n, k), threads, result)) return result;
    const Found found = by_histogram(values, n, k, threads);
    return {value_of(found.key), found.greater, found.equal, result.not_a_number};
}

// The exact k-th largest magnitude of `values` (n), how many are larger and how many as large.
Threshold kth_largest(const float* values, int64_t n, int64_t k, int threads) {
    check_rank(n, k);
    return search(values, n, k, threads);
}

// The same, faster where the result is near `last`, the result for similar values; without a hint that is 0 or NaN.
Threshold kth_largest_near(const float* values, int64_t n, int64_t k, float last, int threads) {
    check_rank(n, k);
    const Range range = range_around(last);
    Threshold result;
    if (n > 512 && range.low < range.high && search_range<false>(values, n, k, range, threads_for(n, threads), result))
        return result;
    return search(values, n, k, threads);
}

// The k-th largest magnitude as a sample of the array sees it: for `samples` entries drawn by the seed, their exact
// quantile. The density it gives is off by about sqrt(d (1 - d) / samples), somewhat more where neighbours are alike.
float sampled_threshold(const float* values, int64_t n, int64_t k, int64_t samples, uint64_t seed, int threads) {
    check_rank(n, k);
    if (samples < 1) invalid("sampled_threshold: there must be at least one sample.");
    samples = least(samples, n);
    Buffer<Key> sample{size_t(samples + 2 * W)};
    if (samples < n) draw(values, n, samples, samples % 4 ? 1 : 4, seed, sample.data, threads_for(samples, threads));
    else for (int64_t i = 0; i < n; ++i) sample[i] = key_of(values[i]);
    const int64_t rank = int64_t(double(k) / double(n) * double(samples) + 0.5);
    return value_of(kth_of_few(sample.data, samples, least(rank < 1 ? 1 : rank, samples), everything).key);
}

}  // namespace torchswat::SWAT_ISA
