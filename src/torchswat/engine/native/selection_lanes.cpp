// The k-th largest magnitude of each row: of each sample, or each filter.
#include "buffer.h"
#include "keys.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t small = 1 << 15;  // entries of a row: up to here, rows are bisected side by side

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
        results[lane] = search(along > 1 ? copy + lane * length : from + lane * across, length, k, 1);
}

}  // namespace

// One exact threshold for each group and lane of values[groups][length][lanes]: rows of a matrix (lanes = 1), samples
// of a CHWN activation (groups = 1 or its channels, lanes = N). Results are [groups][lanes]; returns
// whether a NaN was met. Columns are copied out of the array W at a time: their lines of the cache are shared.
bool kth_largest_lanes(const float* values, int64_t groups, int64_t length, int64_t lanes, int64_t k,
                       float* thresholds, int64_t* greater, int64_t* equal, int threads) {
    check_rank(length, k);
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

}  // namespace torchswat::SWAT_ISA
