// Which entries are the k largest in magnitude.
//
// The bits of a float without its sign order like an integer, so a magnitude is a "key" of 31 bits:
//
//     exponent 8 | mantissa 23        0 = zero ... 0x7f800000 = infinity < NaN
//
// The k-th largest key is found by narrowing a range of keys. A histogram of 2048 buckets narrows it by 11 bits a
// pass, but costs about 1.5 ns an entry. So a large array is bracketed first: a sample predicts a range that holds
// the k-th largest (four standard deviations either way), one pass over the array counts what lies above and copies
// what lies inside (1-3 %), and the histogram works on the copy. The result is exact always: a bracket that missed
// shows in the counts, and then the histogram goes over the whole array.
//
//     bytes read: 4 n (bandwidth bound), 12 n where the bracket missed; written: about 0.1 n
//
// Keys are integers and counts are sums, so nothing depends on the order or number of threads.
#include "buffer.h"
#include "kernels.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {
namespace {

typedef uint32_t Key;
typedef Key FloatBits __attribute__((may_alias));  // to read floats as keys where they lie
constexpr Key magnitude = 0x7fffffff, infinity = 0x7f800000;
constexpr int64_t chunk = 1 << 14;      // entries a thread takes at a time
constexpr int64_t small = 1 << 15;      // below, bracketing does not pay
constexpr int64_t worth_a_thread = 1 << 18;
constexpr int64_t most_samples = 1 << 15;
constexpr int bucket_bits = 11, buckets = 1 << bucket_bits;

Key key_of(float value) {
    Key bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & magnitude;
}

float value_of(Key key) {
    float value;
    std::memcpy(&value, &key, sizeof value);
    return value;
}

vi load_keys(const float* values) {
    return *reinterpret_cast<const vi_any*>(values) & int32_t(magnitude);
}

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

// The key that was looked for, how many are greater and how many equal to it.
struct Found {
    Key key;
    int64_t greater, equal;
};

// The k-th largest of the keys in [low, low + 2^bits), which hold at least k.
Found narrow(const float* values, int64_t n, int64_t k, Key low, int bits, int threads) {
    const int parts = int(least(threads, n / worth_a_thread + 1));
    Buffer<Histogram> histograms{size_t(parts)};
    int64_t greater = 0;
    for (;;) {
        const int shift = bits > bucket_bits ? bits - bucket_bits : 0;
        const Key used = Key(1) << (bits - shift);
        std::memset(histograms.data, 0, sizeof(Histogram) * parts);
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
        for (int part = 0; part < parts; ++part) {
            const int64_t begin = n * part / parts, end = n * (part + 1) / parts;
            count_buckets(values + begin, end - begin, low, shift, used, histograms[part]);
        }
        Key bucket = used;
        int64_t inside = 0;
        while (greater + inside < k && bucket > 0) {
            greater += inside;
            --bucket;
            inside = 0;
            for (int part = 0; part < parts; ++part)
                inside += int64_t(histograms[part].counts[0][bucket]) + histograms[part].counts[1][bucket];
        }
        low += bucket << shift;
        if (shift == 0) return {low, greater, inside};
        bits = shift;
    }
}

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

// The k-th largest of a few keys, by bisecting the range of keys; those that have left it are thrown out now and
// then. The keys are overwritten, and up to 2 W behind them (zeros that fill the last vector may count as keys).
Key kth_of_few(Key* keys, int64_t n, int64_t k) {
    constexpr int rounds = 6;  // from one throwing out to the next
    Key found = 0;
    for (int bit = 30; bit >= 0; --bit) {
        std::memset(keys + n, 0, sizeof(Key) * W);  // no candidate is as small
        const vi candidate = splat_int(int32_t(found | Key(1) << bit));
        vi at_least{};
        for (int64_t i = 0; i < n; i += W) at_least -= load_keys(reinterpret_cast<float*>(keys + i)) >= candidate;
        if (sum_lanes(at_least) >= k) found |= Key(1) << bit;
        if (bit % rounds || n <= 16 * W) continue;
        const vi low = splat_int(int32_t(found)), high = splat_int(int32_t(found + (Key(1) << bit) - 1));
        int64_t inside = 0;
        for (int64_t i = 0; i < n; i += W) {
            const vi these = load_keys(reinterpret_cast<float*>(keys + i));
            const unsigned greater = bits_of(these > high);
            k -= __builtin_popcount(greater);
            inside += compress(reinterpret_cast<int32_t*>(keys) + inside, these, bits_of(these >= low) & ~greater);
        }
        n = inside;
    }
    return found;
}

int64_t square_root(int64_t x) {
    int64_t root = 0;
    while ((root + 1) * (root + 1) <= x) ++root;
    return root;
}

// Keys between which the k-th largest should lie: it is looked for in low < key <= high, and as low itself.
struct Bracket {
    Key low, high;
};

Bracket bracket(const float* values, int64_t n, int64_t k, int threads) {
    const int64_t samples = least(most_samples, n / 64 > 2048 ? n / 64 : 2048);
    Buffer<Key> sample{size_t(samples + 2 * W)}, again{size_t(samples + 2 * W)};
    draw(values, n, samples, 1, 0, sample.data, threads);
    std::memcpy(again.data, sample.data, sizeof(Key) * size_t(samples));
    const int64_t rank = int64_t(double(k) / double(n) * double(samples));
    const int64_t margin = 4 * square_root(int64_t(double(rank) * double(samples - rank) / double(samples))) + 4;
    Bracket range{0, magnitude};
    if (rank - margin >= 1) range.high = kth_of_few(sample.data, samples, rank - margin);
    if (rank + margin <= samples) range.low = kth_of_few(again.data, samples, rank + margin);
    return range;
}

// What one pass over the array counts.
struct Tally {
    int64_t greater = 0, equal = 0, inside = 0;
    Key largest = 0;
};

// Counts keys above the range and at its low end, and copies those inside to `inside` (room for n + W).
Tally split(const float* values, int64_t n, Bracket range, Key* inside) {
    const vi low = splat_int(int32_t(range.low)), high = splat_int(int32_t(range.high));
    vi greater{}, equal{}, largest{};
    int64_t count = 0, i = 0;
    for (; i + W <= n; i += W) {
        const vi keys = load_keys(values + i);
        greater -= keys > high;
        equal -= keys == low;
        largest = keys > largest ? keys : largest;
        count += compress(reinterpret_cast<int32_t*>(inside) + count, keys, bits_of((keys > low) & (keys <= high)));
    }
    Tally tally{sum_lanes(greater), sum_lanes(equal), 0, 0};
    for (int lane = 0; lane < W; ++lane)
        if (Key(largest[lane]) > tally.largest) tally.largest = Key(largest[lane]);
    for (; i < n; ++i) {
        const Key key = key_of(values[i]);
        tally.greater += key > range.high;
        tally.equal += key == range.low;
        if (key > tally.largest) tally.largest = key;
        if (key > range.low && key <= range.high) inside[count++] = key;
    }
    tally.inside = count;
    return tally;
}

// All chunks split; the keys inside end in `inside` in any order, but for those beyond its `room`.
Tally split_all(const float* values, int64_t n, Bracket range, Key* inside, int64_t room, int threads) {
    Tally total;
    const int64_t chunks = (n + chunk - 1) / chunk;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        alignas(64) Key stage[chunk + W];
        Tally mine;
#pragma omp for schedule(static)
        for (int64_t c = 0; c < chunks; ++c) {
            const Tally tally = split(values + c * chunk, least(chunk, n - c * chunk), range, stage);
            mine.greater += tally.greater;
            mine.equal += tally.equal;
            if (tally.largest > mine.largest) mine.largest = tally.largest;
            const int64_t at = __atomic_fetch_add(&total.inside, tally.inside, __ATOMIC_RELAXED);
            if (at < room) std::memcpy(inside + at, stage, sizeof(Key) * size_t(least(tally.inside, room - at)));
        }
#pragma omp critical(torchswat_split)
        {
            total.greater += mine.greater;
            total.equal += mine.equal;
            if (mine.largest > total.largest) total.largest = mine.largest;
        }
    }
    return total;
}

int bits_to_hold(Key range) { return range ? 32 - __builtin_clz(range) : 0; }

Threshold by_histogram(const float* values, int64_t n, int64_t k, int threads) {
    const Found found = narrow(values, n, k, 0, 31, threads);
    vi largest{};
    int64_t i = 0;
    for (; i + W <= n; i += W) largest = load_keys(values + i) > largest ? load_keys(values + i) : largest;
    bool nan = bits_of(largest > int32_t(infinity)) != 0;
    for (; i < n; ++i) nan |= key_of(values[i]) > infinity;
    return {value_of(found.key), found.greater, found.equal, nan};
}

Threshold select(const float* values, int64_t n, int64_t k, int threads) {
    if (n <= small) return by_histogram(values, n, k, threads);
    const Bracket range = bracket(values, n, k, threads);
    const int64_t room = n / 8;
    Buffer<Key> inside{size_t(room)};
    const Tally tally = split_all(values, n, range, inside.data, room, threads);
    const bool nan = tally.largest > infinity;
    const int64_t missing = k - tally.greater;
    if (missing > 0 && missing <= tally.inside && tally.inside <= room) {
        const Found found = narrow(reinterpret_cast<float*>(inside.data), tally.inside, missing, range.low + 1,
                                   bits_to_hold(range.high - range.low - 1), threads);
        return {value_of(found.key), tally.greater + found.greater, found.equal, nan};
    }
    if (missing > tally.inside && missing <= tally.inside + tally.equal)
        return {value_of(range.low), tally.greater + tally.inside, tally.equal, nan};
    return by_histogram(values, n, k, threads);
}

// The k-th largest of up to W columns, `across` apart, whose entries are `along` apart. Their keys are packed
// [length][W] and searched bit by bit from the highest: 32 passes of two operations for W entries. For short columns
// a histogram would cost more to clear than this.
void bisect_columns(const float* from, int64_t across, int64_t along, int64_t length, int columns, int64_t k,
                    vi* packed, Threshold* results) {
    for (int64_t i = 0; i < length; ++i)
        if (across == 1) {
            packed[i] = reinterpret_cast<vi>(load_first(from + i * along, columns)) & int32_t(magnitude);
        } else {
            packed[i] = vi{};
            for (int lane = 0; lane < columns; ++lane)
                packed[i][lane] = int32_t(key_of(from[lane * across + i * along]));
        }
    vi found{};
    for (int bit = 30; bit >= 0; --bit) {
        const vi candidate = found | (1 << bit);
        vi count{};
        for (int64_t i = 0; i < length; ++i) count -= packed[i] >= candidate;
        found = count >= int32_t(k) ? candidate : found;
    }
    vi greater{}, equal{}, largest{};
    for (int64_t i = 0; i < length; ++i) {
        greater -= packed[i] > found;
        equal -= packed[i] == found;
        largest = packed[i] > largest ? packed[i] : largest;
    }
    for (int lane = 0; lane < columns; ++lane)
        results[lane] = {value_of(Key(found[lane])), greater[lane], equal[lane], Key(largest[lane]) > infinity};
}

// The same for long columns: each is copied to memory of its own, where it has not that already.
void select_columns(const float* from, int64_t across, int64_t along, int64_t length, int columns, int64_t k,
                    vi* packed, Threshold* results) {
    float* copy = reinterpret_cast<float*>(packed);
    if (along > 1)
        for (int64_t i = 0; i < length; ++i)
            for (int lane = 0; lane < columns; ++lane) copy[lane * length + i] = from[lane * across + i * along];
    for (int lane = 0; lane < columns; ++lane)
        results[lane] = select(along > 1 ? copy + lane * length : from + lane * across, length, k, 1);
}

void check(int64_t n, int64_t k) {
    if (n < 1) invalid("selection: the array is empty.");
    if (k < 1 || k > n) invalid("selection: k must lie between 1 and the number of entries.");
}

}  // namespace

// The exact k-th largest magnitude of `values` (n), how many are larger and how many as large.
Threshold kth_largest(const float* values, int64_t n, int64_t k, int threads) {
    check(n, k);
    return select(values, n, k, threads);
}

// One exact threshold for each group and lane of values[groups][length][lanes]: rows of a matrix (lanes = 1), samples
// of a batch-innermost activation (groups = 1 or its channels, lanes = N). Results are [groups][lanes]; returns
// whether a NaN was met. Columns are copied out of the array W at a time: their lines of the cache are shared.
bool kth_largest_lanes(const float* values, int64_t groups, int64_t length, int64_t lanes, int64_t k,
                       float* thresholds, int64_t* greater, int64_t* equal, int threads) {
    check(length, k);
    const bool rows = lanes == 1;  // then the groups are the columns
    const int64_t across = rows ? length : 1, along = lanes;
    const int64_t columns = rows ? groups : lanes, matrices = rows ? 1 : groups, blocks = (columns + W - 1) / W;
    int nan = 0;
#pragma omp parallel num_threads(threads) reduction(| : nan) if (threads > 1)
    {
        Buffer<vi> packed{size_t(length)};
#pragma omp for schedule(static) collapse(2)
        for (int64_t matrix = 0; matrix < matrices; ++matrix)
            for (int64_t block = 0; block < blocks; ++block) {
                const int count = int(least(W, columns - block * W));
                const float* from = values + matrix * length * lanes + block * W * across;
                Threshold found[W];
                if (length > small) select_columns(from, across, along, length, count, k, packed.data, found);
                else bisect_columns(from, across, along, length, count, k, packed.data, found);
                for (int lane = 0; lane < count; ++lane) {
                    const int64_t at = matrix * columns + block * W + lane;
                    thresholds[at] = found[lane].value;
                    greater[at] = found[lane].greater;
                    equal[at] = found[lane].equal;
                    nan |= found[lane].not_a_number;
                }
            }
    }
    return nan;
}

// The k-th largest magnitude as a sample of the array sees it: for `samples` entries drawn by the seed, their exact
// quantile. The density it gives is off by about sqrt(d (1 - d) / samples), somewhat more where neighbours are alike.
float sampled_threshold(const float* values, int64_t n, int64_t k, int64_t samples, uint64_t seed, int threads) {
    check(n, k);
    if (samples < 1) invalid("sampled_threshold: there must be at least one sample.");
    samples = least(samples, n);
    Buffer<Key> sample{size_t(samples + 2 * W)};
    if (samples < n) draw(values, n, samples, samples % 4 ? 1 : 4, seed, sample.data, threads);
    else for (int64_t i = 0; i < n; ++i) sample[i] = key_of(values[i]);
    const int64_t rank = int64_t(double(k) / double(n) * double(samples) + 0.5);
    return value_of(kth_of_few(sample.data, samples, least(rank < 1 ? 1 : rank, samples)));
}

// How many magnitudes are larger than, and how many equal to, a threshold that is known; one pass of 4 n bytes.
Threshold count_kept(const float* values, int64_t n, float threshold, int threads) {
    const vi limit = splat_int(int32_t(key_of(threshold)));
    int64_t greater = 0, equal = 0;
    int nan = 0;
    const int64_t chunks = (n + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : greater, equal) reduction(| : nan) \
    if (threads > 1)
    for (int64_t c = 0; c < chunks; ++c) {
        const int64_t begin = c * chunk, end = least(begin + chunk, n);
        vi more{}, same{}, largest{};
        int64_t i = begin;
        for (; i + W <= end; i += W) {
            const vi keys = load_keys(values + i);
            more -= keys > limit;
            same -= keys == limit;
            largest = keys > largest ? keys : largest;
        }
        greater += sum_lanes(more);
        equal += sum_lanes(same);
        nan |= bits_of(largest > int32_t(infinity)) != 0;
        for (; i < end; ++i) {
            greater += key_of(values[i]) > key_of(threshold);
            equal += key_of(values[i]) == key_of(threshold);
            nan |= key_of(values[i]) > infinity;
        }
    }
    return {threshold, greater, equal, nan != 0};
}

// mask[i] = 1 where |value| > threshold, and for the first `ties` of those equal to it; one byte an entry.
// "First" is by logical order: values is [length][lanes] in memory and lane-major in logic, as a batch-innermost
// activation is (lanes = N); lanes = 1 for an array in its own order. The mask is laid out like the values.
void magnitude_mask(const float* values, int64_t length, int64_t lanes, float threshold, int64_t ties, uint8_t* mask,
                    int threads) {
    const Key limit = key_of(threshold);
    const int64_t rows = chunk / lanes > 0 ? chunk / lanes : 1;  // of the matrix, in a chunk
    const int64_t chunks = (length + rows - 1) / rows;
    Buffer<int64_t> equals{size_t(chunks * lanes)};  // [lanes][chunks]: logical order
    int64_t all = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : all) if (threads > 1)
    for (int64_t c = 0; c < chunks; ++c) {
        const int64_t begin = c * rows, end = least(begin + rows, length);
        int64_t found = 0;
        for (int64_t i = begin * lanes; i < end * lanes; ++i) {
            const Key key = key_of(values[i]);
            mask[i] = key >= limit;
            found += key == limit;
        }
        all += found;
        for (int64_t lane = 0; lane < lanes; ++lane) equals[lane * chunks + c] = 0;
        if (found)
            for (int64_t i = begin; i < end; ++i)
                for (int64_t lane = 0; lane < lanes; ++lane)
                    equals[lane * chunks + c] += key_of(values[i * lanes + lane]) == limit;
    }
    if (all <= ties) return;
    Buffer<int64_t> surplus{size_t(chunks)};
    std::memset(surplus.data, 0, sizeof(int64_t) * size_t(chunks));
    int64_t left = ties;
    for (int64_t i = 0; i < chunks * lanes; ++i) {  // from counts to how many of them stay
        const int64_t stay = least(equals[i], left);
        surplus[i % chunks] += equals[i] - stay;
        equals[i] = stay;
        left -= stay;
    }
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < chunks; ++c) {
        if (surplus[c] == 0) continue;
        for (int64_t i = c * rows; i < least((c + 1) * rows, length); ++i)
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const int64_t at = i * lanes + lane;
                if (key_of(values[at]) == limit && equals[lane * chunks + c]-- <= 0) mask[at] = 0;
            }
    }
}

namespace {

// The mask of one row of `length` entries that lie one behind the other.
void mask_row(const float* values, int64_t length, Key limit, int64_t ties, uint8_t* mask) {
    for (int64_t i = 0; i < length; ++i) mask[i] = key_of(values[i]) >= limit;
    for (int64_t i = length; ties < 0; --i)  // more are equal than may stay: the last ones go
        if (key_of(values[i - 1]) == limit) mask[i - 1] = 0, ++ties;
}

// The masks of up to W rows side by side, their entries `lanes` apart.
void mask_columns(const float* values, int64_t length, int64_t lanes, int columns, vi limit, vi ties, uint8_t* mask) {
    for (int64_t i = 0; i < length; ++i) {
        const vi keys = reinterpret_cast<vi>(load_first(values + i * lanes, columns)) & int32_t(magnitude);
        const vi equal = keys == limit, stays = equal & (ties > 0);
        ties += stays;
        const vi kept = (keys > limit) | stays;
        for (int lane = 0; lane < columns; ++lane) mask[i * lanes + lane] = uint8_t(kept[lane] & 1);
    }
}

}  // namespace

// mask[i] = 1 where |value| > the threshold of its row, and for the first `ties` of those equal to it. Rows are those
// of kth_largest_lanes: values[groups][length][lanes], one for each group and lane; the mask is laid out like them.
void magnitude_mask_lanes(const float* values, int64_t groups, int64_t length, int64_t lanes, const float* thresholds,
                          const int64_t* equal, const int64_t* ties, uint8_t* mask, int threads) {
    const int64_t blocks = (lanes + W - 1) / W;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2) if (threads > 1)
    for (int64_t group = 0; group < groups; ++group)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t from = group * length * lanes + block * W, row = group * lanes + block * W;
            if (lanes == 1) {
                mask_row(values + from, length, key_of(thresholds[row]), ties[row] - equal[row], mask + from);
                continue;
            }
            const int columns = int(least(W, lanes - block * W));
            vi limit{}, left{};
            for (int lane = 0; lane < columns; ++lane) {
                limit[lane] = int32_t(key_of(thresholds[row + lane]));
                left[lane] = int32_t(ties[row + lane]);
            }
            mask_columns(values + from, length, lanes, columns, limit, left, mask + from);
        }
}

}  // namespace torchswat::SWAT_ISA
