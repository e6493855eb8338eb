// The inner loops of the products with sparse weights: a tile of results in registers, and every kept weight of one
// row of results added to it.
//
//     registers[H][V]  +=  weight * tile[offset + (0..H-1, 0..V-1)]        vectors of W samples
//
// A multiply-add takes its vector from the first-level cache, aligned; a weight costs one broadcast and part of a load
// of its 16-bit offset besides. Measured (Sapphire Rapids, one core): 214 GFLOP/s from registers, 146 with each vector
// from memory, 135 with the broadcasts, 128 in the loops below; hence `Patterned`, which loads less (144 at a density
// of 0.5). Addresses of base + index, instead of one register a line, cost 8%.
#pragma once
#include "sparse_weights.h"

#include <utility>

namespace torchswat::SWAT_ISA {

constexpr int64_t vector = sizeof(vf);

// One of H x V vectors for each result of a tile.
template <int H, int V> struct Registers {
    vf at[H][V];

    SWAT_INLINE void fill(vf value) {
#pragma GCC unroll 32
        for (int i = 0; i < H * V; i++) at[i / V][i % V] = value;
    }
    SWAT_INLINE void load_from(const float* p) {
#pragma GCC unroll 32
        for (int i = 0; i < H * V; i++) at[i / V][i % V] = load(p + i * W);
    }
    SWAT_INLINE void store_to(float* p) const {
#pragma GCC unroll 32
        for (int i = 0; i < H * V; i++) store(p + i * W, at[i / V][i % V]);
    }
};

// The inner loop: one kept weight times one tile.
template <class M, int H, int V>
SWAT_INLINE void add(Registers<H, V>& sum, const char* tile, int64_t row_bytes, float value) {
    const vf weight = M::spread(value);
#pragma GCC unroll 8
    for (int i = 0; i < H; i++, tile += row_bytes) {
        asm("" : "+r"(tile));  // one register a row: addresses of base + index are slower
        const float* row = reinterpret_cast<const float*>(tile);
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) sum.at[i][j] = M::add(sum.at[i][j], weight, load(row + j * W));
    }
}

// Any kernel: one list for a row of the result.
template <class M, int H, int V> struct Plain {
    using Multiply = M;
    static constexpr int height = H, width = V;

    static SWAT_INLINE void add_row(Registers<H, V>& sum, const Tiles& t, const float* floats,
                                                              const SparseWeights& weights, const int32_t* start) {
        const char* tile = reinterpret_cast<const char*>(floats);
        const int64_t row_bytes = int64_t(t.w.phases) * t.w.extent * W * sizeof(float);
        const float* values = weights.values + start[0];
        const uint16_t* offsets = weights.offsets + start[0];
        const int count = start[1] - start[0];
        int i = 0;
        for (; i + 4 <= count; i += 4) {
            uint64_t four;  // offsets at one load
            std::memcpy(&four, offsets + i, sizeof four);
            add<M>(sum, tile + (four & 0xffff) * vector, row_bytes, values[i]);
            add<M>(sum, tile + (four >> 16 & 0xffff) * vector, row_bytes, values[i + 1]);
            add<M>(sum, tile + (four >> 32 & 0xffff) * vector, row_bytes, values[i + 2]);
            add<M>(sum, tile + (four >> 48) * vector, row_bytes, values[i + 3]);
        }
        for (; i < count; i++) add<M>(sum, tile + offsets[i] * vector, row_bytes, values[i]);
    }
};

// A 3x3 kernel: the kept ones of three neighbouring weights share the vectors that they load.
template <class M, int H, int V> struct Patterned {
    using Multiply = M;
    static constexpr int height = H, width = V;

    template <int pattern>
    static SWAT_INLINE void add_groups(Registers<H, V>& sum, const char* tile,
                                                                 int64_t row_bytes, const float*& values,
                                                                 const uint16_t*& offsets, int groups) {
        constexpr bool has_a = pattern & 1, has_b = pattern & 2, has_c = pattern & 4;
        constexpr int first = has_a ? 0 : has_b ? 1 : 2, last = V + (has_c ? 2 : has_b ? 1 : 0);
        for (int group = 0; group < groups; group++) {
            vf a{}, b{}, c{};
            if constexpr (has_a) a = M::spread(*values++);
            if constexpr (has_b) b = M::spread(*values++);
            if constexpr (has_c) c = M::spread(*values++);
            const char* line = tile + *offsets++ * vector;
#pragma GCC unroll 8
            for (int i = 0; i < H; i++, line += row_bytes) {
                asm("" : "+r"(line));
                const float* vectors = reinterpret_cast<const float*>(line);
#pragma GCC unroll 16
                for (int j = first; j < last; j++) {
                    const bool by_a = has_a && j < V, by_b = has_b && j >= 1 && j <= V, by_c = has_c && j >= 2;
                    vf x = load(vectors + j * W);
                    if (by_a + by_b + by_c > 1) in_register(x);
                    if (by_a) sum.at[i][j] = M::add(sum.at[i][j], a, x);
                    if (by_b) sum.at[i][j - 1] = M::add(sum.at[i][j - 1], b, x);
                    if (by_c) sum.at[i][j - 2] = M::add(sum.at[i][j - 2], c, x);
                }
            }
        }
    }

    static SWAT_INLINE void add_row(Registers<H, V>& sum, const Tiles& t, const float* floats,
                                                              const SparseWeights& weights, const int32_t* start) {
        const char* tile = reinterpret_cast<const char*>(floats);
        const int64_t row_bytes = int64_t(t.w.extent) * W * sizeof(float);
        const float* values = weights.values + start[0];
        const uint16_t* offsets = weights.offsets + start[0];
        add_groups<1>(sum, tile, row_bytes, values, offsets, start[1]);
        add_groups<2>(sum, tile, row_bytes, values, offsets, start[2]);
        add_groups<3>(sum, tile, row_bytes, values, offsets, start[3]);
        add_groups<4>(sum, tile, row_bytes, values, offsets, start[4]);
        add_groups<5>(sum, tile, row_bytes, values, offsets, start[5]);
        add_groups<6>(sum, tile, row_bytes, values, offsets, start[6]);
        add_groups<7>(sum, tile, row_bytes, values, offsets, start[7]);
    }
};

// One list a tap: those of a 3x3 kernel, one after the other.
template <class Loop, int... tap>
SWAT_INLINE void add_taps(typename Loop::Sum& sum, const float* tile, const SparseWeights& weights,
                          const int32_t* start, std::integer_sequence<int, tap...>) {
    (Loop::template add_tap<tap / 3, tap % 3>(sum, reinterpret_cast<const char*>(tile), weights, start), ...);
}

enum Edges { low = 1, high = 2 };  // that a tile lies at, along one axis

// A 3x3 kernel on a tile at edges of the map: one list a tap, which leaves out the positions it would read zeros for.
template <class M, int EH, int EV> struct Trimmed {
    using Multiply = M;
    static constexpr int height = trimmed_tile, width = trimmed_tile;
    using Sum = Registers<height, width>;

    template <int R, int S>
    static SWAT_INLINE void add_tap(Sum& sum, const char* tile, const SparseWeights& weights,
                                                              const int32_t* start) {
        constexpr int extent = trimmed_tile + 2 - (EV & low ? 1 : 0) - (EV & high ? 1 : 0);
        constexpr int i0 = EH & low && R == 0, i1 = height - (EH & high && R == 2);
        constexpr int j0 = EV & low && S == 0, j1 = width - (EV & high && S == 2);
        constexpr int shift = (R - (EH & low ? 1 : 0)) * extent + S - (EV & low ? 1 : 0);
        for (int at = start[R * 3 + S], end = start[R * 3 + S + 1]; at < end; at++) {
            const vf weight = M::spread(weights.values[at]);
            const char* source = tile + weights.offsets[at] * vector;
            asm("" : "+r"(source));
            const float* vectors = reinterpret_cast<const float*>(source);
#pragma GCC unroll 4
            for (int i = i0; i < i1; i++) {
#pragma GCC unroll 4
                for (int j = j0; j < j1; j++)
                    sum.at[i][j] = M::add(sum.at[i][j], weight, load(vectors + (i * extent + j + shift) * W));
            }
        }
    }

    static SWAT_INLINE void add_row(Sum& sum, const Tiles&, const float* floats, const SparseWeights& weights,
                                    const int32_t* start) {
        add_taps<Trimmed>(sum, floats, weights, start, std::make_integer_sequence<int, taps_3x3>());
    }
};

// A 3x3 kernel on a map of 2x2, all positions of it times some vectors of samples: a list a tap as well, of which a
// corner meets one position, an edge two.
template <class M> struct Tiny {
    using Multiply = M;
    static constexpr int height = tiny_map * tiny_map, width = tiny_vectors;
    using Sum = Registers<height, width>;

    template <int R, int S>
    static SWAT_INLINE void add_tap(Sum& sum, const char* tile, const SparseWeights& weights, const int32_t* start) {
        for (int at = start[R * 3 + S], end = start[R * 3 + S + 1]; at < end; at++) {
            const vf weight = M::spread(weights.values[at]);
            const float* vectors = reinterpret_cast<const float*>(tile + weights.offsets[at] * vector);
#pragma GCC unroll 4
            for (int to = 0; to < height; to++) {
                const int i = to / tiny_map + R - 1, j = to % tiny_map + S - 1;
                if (i < 0 || i >= tiny_map || j < 0 || j >= tiny_map) continue;
                const float* from = vectors + (i * tiny_map + j) * width * W;
#pragma GCC unroll 4
                for (int v = 0; v < width; v++) sum.at[to][v] = M::add(sum.at[to][v], weight, load(from + v * W));
            }
        }
    }

    static SWAT_INLINE void add_row(Sum& sum, const Tiles&, const float* floats, const SparseWeights& weights,
                                    const int32_t* start) {
        add_taps<Tiny>(sum, floats, weights, start, std::make_integer_sequence<int, taps_3x3>());
    }
};

}  // namespace torchswat::SWAT_ISA
