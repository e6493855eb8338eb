// What a threshold keeps: counts, masks, and arrays with zeros elsewhere.
#include "buffer.h"
#include "keys.h"

namespace torchswat::SWAT_ISA {

namespace {

// Calls visit(begin, end) for runs of at most a chunk that make up all n entries.
template <class Visit> void for_entries(int64_t n, int threads, const Visit& visit) {
    const int parts = threads_for(n, threads);
    const int64_t chunks = (n + chunk - 1) / chunk;
    for_threads(parts, [&](int t) {
        for (int64_t c = chunks * t / parts; c < chunks * (t + 1) / parts; ++c)
            visit(c * chunk, least((c + 1) * chunk, n));
    });
}

}  // namespace

// How many magnitudes are larger than, and how many equal to, a threshold that is known; one pass of 4 n bytes.
Threshold count_kept(const float* values, int64_t n, float threshold, int threads) {
    const vi limit = splat_int(int32_t(key_of(threshold)));
    Threshold result{threshold, 0, 0, false};
    for_entries(n, threads, [&](int64_t begin, int64_t end) {
        vi more{}, same{}, largest{};
        for (int64_t i = begin; i < end; i += W) {
            const int lanes = int(least(W, end - i));
            vi keys = reinterpret_cast<vi>(load_first(values + i, lanes)) & int32_t(magnitude);
            if (lanes < W)
                for (int lane = lanes; lane < W; ++lane) keys[lane] = -1;  // below all keys
            more -= keys > limit;
            same -= keys == limit;
            largest = keys > largest ? keys : largest;
        }
        const int64_t greater = sum_lanes(more), equal = sum_lanes(same);
        __atomic_fetch_add(&result.greater, greater, __ATOMIC_RELAXED);
        __atomic_fetch_add(&result.equal, equal, __ATOMIC_RELAXED);
        if (largest_lane(largest) > infinity) __atomic_store_n(&result.not_a_number, true, __ATOMIC_RELAXED);
    });
    return result;
}

// y = x where |x| >= threshold or x is a NaN, and zero elsewhere; y may be x. Bytes: 4 n read, 4 n written.
void keep_large(const float* x, int64_t n, float threshold, float* y, int threads) {
    const vf limit = splat(threshold);
    for_entries(n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += W) {
            const int lanes = int(least(W, end - i));
            const vf value = load_first(x + i, lanes);
            const vf size = reinterpret_cast<vf>(reinterpret_cast<vi>(value) & int32_t(magnitude));
            const vi small = size < limit;
            store_first(y + i, reinterpret_cast<vf>(reinterpret_cast<vi>(value) & ~small), lanes);
        }
    });
}

// y = x where the mask is not 0, and zero elsewhere, where x is infinite as well; y may be x.
void keep_marked(const float* x, const uint8_t* mask, int64_t n, float* y, int threads) {
    const FloatBits* from = reinterpret_cast<const FloatBits*>(x);
    FloatBits* to = reinterpret_cast<FloatBits*>(y);
    for_entries(n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = from[i] & -Key(mask[i] != 0);
    });
}

// mask[i] = 1 where |value| > threshold, and for the first `ties` of those equal to it; one byte an entry.
// "First" is by logical order: values is [length][lanes] in memory and lane-major in logic, as a CHWN
// activation is (lanes = N); lanes = 1 for an array in its own order. The mask is laid out like the values.
void magnitude_mask(const float* values, int64_t length, int64_t lanes, float threshold, int64_t ties, uint8_t* mask,
                    int threads) {
    const Key limit = key_of(threshold);
    threads = threads_for(length * lanes, threads);
    const int64_t rows = chunk / lanes > 0 ? chunk / lanes : 1;  // of the matrix, in a chunk
    const int64_t chunks = (length + rows - 1) / rows;
    Buffer<int64_t> equals{size_t(chunks * lanes)};  // [lanes][chunks]: logical order
    int64_t all = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : all) if (threads > 1)
    for (int64_t c = 0; c < chunks; ++c) {
        const int64_t begin = c * rows, end = least(begin + rows, length);
        int64_t found = 0;
        const FloatBits* keys = reinterpret_cast<const FloatBits*>(values);
        for (int64_t i = begin * lanes; i < end * lanes; ++i) {
            mask[i] = (keys[i] & magnitude) >= limit;
            found += (keys[i] & magnitude) == limit;
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
