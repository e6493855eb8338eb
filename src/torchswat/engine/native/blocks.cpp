// Weights selected in blocks: neighbouring filters x input channels at one kernel position, by the sum of magnitudes.
//
//     weights [group][filter][channel][position]            two filters x two channels:    a b
//     sums    [group][row][column][position]                                               c d
//     mask    like the weights, one byte each               sum = (|a| + |c|) + (|b| + |d|)
//
// A row of blocks is `block_filters` filters of one group, a column `block_channels` channels; the last ones may be
// smaller. Filters are added first, each sum in the order of memory, so no bit depends on threads or instruction set.
//
//     sum       4 n read, 4 n / block written     in tiles that stay in the L1 cache
//     search    4 n / block read                  kth_largest_near
//     flag      4 n / block read, n / block written
//     spread    n / block read, n written
//
// Measured on an AMD Zen 5 (AVX-512, 2 threads), the 11.2 million weights of ResNet-18 in 21 calls, thresholds off by 1 %,
// in milliseconds: (1, 2) 3.7, (2, 2) 3.0, (4, 4) 2.0; select_operand, which writes no mask, 1.0.
#include "buffer.h"
#include "keys.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t tile_entries = 2048;  // weights of a filter
constexpr int64_t piece = 16;           // bytes of the mask that are copied at a time

int64_t rows_of_group(const Blocks& b) { return (b.filters + b.block_filters - 1) / b.block_filters; }
int64_t columns_of(const Blocks& b) { return (b.channels + b.block_channels - 1) / b.block_channels; }
int64_t count_of(const Blocks& b) { return b.groups * rows_of_group(b) * columns_of(b) * b.area; }

// Some columns of one row of blocks.
struct Tile {
    int64_t weight, sum;        // its first of each
    int64_t filters, entries;   // of each filter
    int64_t columns;
};

int64_t columns_of_tile(const Blocks& b) {
    const int64_t columns = tile_entries / (b.block_channels * b.area);
    return columns < 1 ? 1 : least(columns, columns_of(b));
}

// Calls visit(tile, scratch) for all tiles; the scratch holds a filter of a tile, filled up to whole blocks.
template <class Scratch, class Visit> void for_tiles(const Blocks& b, int threads, const Visit& visit) {
    const int64_t columns = columns_of(b), wide = columns_of_tile(b), in_row = (columns + wide - 1) / wide;
    const int64_t rows = rows_of_group(b), tiles = b.groups * rows * in_row, length = b.channels * b.area;
    const int parts = threads_for(b.groups * b.filters * length, threads);
    for_threads(parts, [&](int part) {
        Buffer<Scratch> scratch{size_t(wide * b.block_channels * b.area + W + piece)};
        for (int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; ++t) {
            const int64_t row = t / in_row, column = t % in_row * wide;
            const int64_t filter = row % rows * b.block_filters, channel = column * b.block_channels;
            const int64_t last = least(column + wide, columns);
            visit(Tile{(row / rows * b.filters + filter) * length + channel * b.area,
                       (row * columns + column) * b.area, least(b.block_filters, b.filters - filter),
                       (least(last * b.block_channels, b.channels) - channel) * b.area, last - column},
                  scratch.data);
        }
    });
}

vf size_of(vf x) { return reinterpret_cast<vf>(reinterpret_cast<vi>(x) & int32_t(magnitude)); }

// to[i] = the sum over filters, `length` apart.
void add_filters(const float* weights, const Tile& tile, int64_t length, float* to) {
    for (int64_t i = 0; i < tile.entries; i += W) {
        const int lanes = int(least(W, tile.entries - i));
        vf sum = size_of(load_first(weights + i, lanes));
        for (int64_t filter = 1; filter < tile.filters; ++filter)
            sum += size_of(load_first(weights + filter * length + i, lanes));
        store_first(to + i, sum, lanes);
    }
}

// to[i] = the sum over the channels of a block, which lie side by side.
template <int channels> void add_neighbours(const float* from, int64_t columns, float* to) {
    for (int64_t i = 0; i < columns; ++i) {
        float sum = from[i * channels];
        for (int channel = 1; channel < channels; ++channel) sum += from[i * channels + channel];
        to[i] = sum;
    }
}

// The same of channels that are `area` apart. A vector may hold positions of the next block, which follow later.
void add_channels(const float* from, const Blocks& b, int64_t columns, float* to) {
    const float* end = to + columns * b.area;
    for (int64_t column = 0; column < columns; ++column, from += b.block_channels * b.area, to += b.area)
        for (int64_t i = 0; i < b.area; i += W) {
            vf sum = loadu(from + i);
            for (int channel = 1; channel < b.block_channels; ++channel) sum += loadu(from + channel * b.area + i);
            store_first(to + i, sum, int(least(W, end - to - i)));
        }
}

Key largest_key(const float* values, int64_t n) {
    vi largest{};
    for (int64_t i = 0; i < n; i += W) {
        const vi keys = reinterpret_cast<vi>(load_first(values + i, int(least(W, n - i)))) & int32_t(magnitude);
        largest = keys > largest ? keys : largest;
    }
    return largest_lane(largest);
}

// The sums of all blocks; returns whether a NaN was met.
bool sum_blocks(const float* weights, const Blocks& b, float* sums, int threads) {
    bool nan = false;
    for_tiles<float>(b, threads, [&](const Tile& tile, float* scratch) {
        float* to = sums + tile.sum;
        float* row = b.block_channels == 1 ? to : scratch;
        add_filters(weights + tile.weight, tile, b.channels * b.area, row);
        if (b.block_channels > 1) {
            const int64_t whole = tile.columns * b.block_channels * b.area;
            for (int64_t i = tile.entries; i < whole; ++i) scratch[i] = 0;
            if (b.area > 1) add_channels(scratch, b, tile.columns, to);
            else if (b.block_channels == 2) add_neighbours<2>(scratch, tile.columns, to);
            else if (b.block_channels == 4) add_neighbours<4>(scratch, tile.columns, to);
            else add_neighbours<8>(scratch, tile.columns, to);
        }
        if (largest_key(to, tile.columns * b.area) > infinity) __atomic_store_n(&nan, true, __ATOMIC_RELAXED);
    });
    return nan;
}

// ---- from flags of blocks to the mask of weights -------------------------------------------------------------------

template <int channels> void repeat_neighbours(const uint8_t* flags, int64_t columns, uint8_t* to) {
    for (int64_t i = 0; i < columns; ++i)
        for (int channel = 0; channel < channels; ++channel) to[i * channels + channel] = flags[i];
}

// A piece may hold flags of the next block, which are overwritten later.
void repeat_channels(const uint8_t* flags, const Blocks& b, int64_t columns, uint8_t* to) {
    for (int64_t column = 0; column < columns; ++column, flags += b.area)
        for (int channel = 0; channel < b.block_channels; ++channel, to += b.area)
            for (int64_t i = 0; i < b.area; i += piece) std::memcpy(to + i, flags + i, piece);
}

int64_t count_flags(const uint8_t* flags, int64_t n) {
    int64_t count = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, flags + i, sizeof eight);
        count += int64_t(eight * 0x0101010101010101u >> 56);
    }
    for (; i < n; ++i) count += flags[i];
    return count;
}

// Writes the mask of all weights, given one flag a block and a piece of room behind them; returns how many are kept.
int64_t spread(const uint8_t* flags, const Blocks& b, uint8_t* mask, int threads) {
    int64_t kept = 0;
    for_tiles<uint8_t>(b, threads, [&](const Tile& tile, uint8_t* scratch) {
        const uint8_t* row = flags + tile.sum;
        if (b.block_channels > 1) {
            if (b.area > 1) repeat_channels(row, b, tile.columns, scratch);
            else if (b.block_channels == 2) repeat_neighbours<2>(row, tile.columns, scratch);
            else if (b.block_channels == 4) repeat_neighbours<4>(row, tile.columns, scratch);
            else repeat_neighbours<8>(row, tile.columns, scratch);
            row = scratch;
        }
        for (int64_t filter = 0; filter < tile.filters; ++filter)
            std::memcpy(mask + tile.weight + filter * b.channels * b.area, row, size_t(tile.entries));
        __atomic_fetch_add(&kept, tile.filters * count_flags(row, tile.entries), __ATOMIC_RELAXED);
    });
    return kept;
}

bool is_side(int side) { return side == 1 || side == 2 || side == 4 || side == 8; }

}  // namespace

// Writes the mask of the k blocks with the largest sums, among equals those of the lowest index; `count` is how many
// weights they have. `memory` is as of select_operand, of sums: a search is made where it is `due` or nothing is
// remembered, else all blocks of at least the last threshold are kept. A `frozen` selection remembers nothing.
Selected select_blocks(double* memory, const float* weights, const Blocks& blocks, int64_t k, double sparsity, bool due,
                       bool exact, bool frozen, uint8_t* mask, int threads) {
    if (!is_side(blocks.block_filters) || !is_side(blocks.block_channels))
        invalid("select_blocks: the sides of a block must be 1, 2, 4 or 8.");
    const int64_t n = count_of(blocks);
    check_rank(n, k);
    Buffer<float> sums{size_t(n)};
    Selected selected{0, -1, -1, sum_blocks(weights, blocks, sums.data, threads)};
    if (selected.not_a_number) return selected;
    const double last = memory[0];
    selected.limit = float(last);
    if (due || !(last >= 0)) {
        const Threshold found = kth_largest_near(sums.data, n, k, float(last > 0 ? last : 0), threads);
        selected.limit = found.value;
        if (exact && found.greater + found.equal > k) selected.ties = k - found.greater;
        if (!frozen) memory[0] = found.value, memory[1] = sparsity;
    }
    Buffer<uint8_t> flags{size_t(n + piece)};
    magnitude_mask(sums.data, n, 1, selected.limit, selected.ties < 0 ? n : selected.ties, flags.data, threads);
    selected.count = spread(flags.data, blocks, mask, threads);
    if (!frozen) memory[2] = double(selected.count) / double(blocks.groups * blocks.filters * blocks.channels * blocks.area);
    return selected;
}

}  // namespace torchswat::SWAT_ISA
