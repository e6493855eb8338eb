// Dense activations to their compressed form (activations.h) and back.
//
// In memory 16 samples of one position stand together; the compressed form wants 16 positions of one sample:
//
//            n0  n1 ... n15                  p0  p1 ... p15
//       p0 [  .   .       . ]          n0  [  .   .       . ]  --> word of bits, kept values to n0's place
//       p1 [  .   .       . ]   turn   n1  [  .   .       . ]  --> ...
//       ...                     --->   ...
//      p15 [  .   .       . ]          n15 [  .   .       . ]
//
// All is read twice: first to count what each sample of each channel keeps, then to lay every kept value where it
// belongs. Both passes run at the speed of memory; what one pass would write aside and copy costs more.
// Bytes: 8 read an entry, 4 * density + 1/8 written.
//
// The dense form may be there as it is, or as what batch norm and ReLU made it from: x with a scale and a shift a
// channel. Then every entry is computed again where it is read.
#include "activations.h"
#include "bfloat16.h"
#include "buffer.h"
#include "compress_lanes.h"
#include "kernels.h"
#include "mask.h"
#include "transpose.h"

namespace torchswat::SWAT_ISA {

namespace {

constexpr int64_t ahead = 2048;  // floats: how long before its turn an entry is asked for

// A square of the dense form: positions p..p+rows-1 of samples i..i+lanes-1, at most 16 each.
struct Square {
    int64_t n, corner;  // floats from row to row; of the first entry
    int64_t word;       // of bits
    int64_t i;
    int rows, lanes;
};

// ---- where entries come from ----------------------------------------------------------------------------------------

// Floats: all of at least the threshold, and NaN.
struct AsTheyAre {
    vf threshold;

    vf operator()(vf x) const { return x; }
    vi kept(vf y) const { return at_least(y, threshold); }
    vi counted(vf y) const { return kept(y); }
    vi not_a_number(vf y) const { return y != y; }
    float one(float x) const { return x; }
};

inline vf rectified(vf x, vf scale, vf shift) {
    const vf y = affine_at(x, scale, shift);
    return keep(y, not_negative_or_zero(y));
}

struct Rectified : AsTheyAre {
    vf scale, shift;

    vf operator()(vf x) const { return rectified(x, scale, shift); }
    float one(float x) const { return (*this)(splat(x))[0]; }  // by the same operations
};

// Pairs of bfloat16: a pair is kept where one of its halves is, and the other half is zero where it is not.
struct AsPairs {
    vf threshold;

    vf select(vf first, vf second) const {
        const vf low = keep(first, bits_of(at_least(first, threshold)));
        const vf high = keep(second, bits_of(at_least(second, threshold)));
        return reinterpret_cast<vf>((reinterpret_cast<vpairs>(low) >> 16) | reinterpret_cast<vpairs>(high));
    }
    vf operator()(vf x) const { return select(first_of(x), second_of(x)); }
    vi kept(vf y) const { return reinterpret_cast<vi>(y) != 0; }
    vi counted(vf y) const {  // entries, not pairs
        const vpairs pairs = reinterpret_cast<vpairs>(y);
        return reinterpret_cast<vi>((pairs & 0xffff) != 0) + reinterpret_cast<vi>((pairs >> 16) != 0);
    }
    vi not_a_number(vf y) const {
        const vf first = first_of(y), second = second_of(y);
        return (first != first) | (second != second);
    }
    float one(float x) const { return (*this)(splat_pair(x))[0]; }
};

struct RectifiedPairs : AsPairs {
    vf scale, shift;

    vf operator()(vf x) const {
        return select(rounded(rectified(first_of(x), scale, shift)), rounded(rectified(second_of(x), scale, shift)));
    }
    float one(float x) const { return (*this)(splat_pair(x))[0]; }
};

// How entries are selected: floats or pairs, and by which threshold.
struct ByFloats {
    using Plain = AsTheyAre;
    using Again = Rectified;
};
struct ByPairs {
    using Plain = AsPairs;
    using Again = RectifiedPairs;
};

// Calls work(entries) with where the entries of a channel come from.
template <class Kind, class Work>
void from(float threshold, const float* scale, const float* shift, int64_t channel, const Work& work) {
    if (scale) work(typename Kind::Again{{above_zero(threshold)}, splat(scale[channel]), splat(shift[channel])});
    else work(typename Kind::Plain{above_zero(threshold)});
}

// ---- squares --------------------------------------------------------------------------------------------------------

inline int at_most_unit(int64_t count) { return int(count < unit ? count : unit); }

template <class Visit> void for_squares(int64_t n, int64_t area, const Visit& visit) {
    for (int64_t p = 0; p < area; p += unit)
        for (int64_t i = 0; i < n; i += unit)
            visit(Square{n, p * n + i, p / unit, i, at_most_unit(area - p), at_most_unit(n - i)});
}

// Rows row..row+W-1 and lanes lane..lane+W-1 of the square, turned: one vector of positions for each sample.
template <class Entries>
inline void load_turned(const float* x, Entries entries, const Square& s, int row, int lane, vf (&tile)[W]) {
    const float* from = x + s.corner + row * s.n + lane;
    if (s.rows - row >= W && s.lanes - lane >= W) {
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) {
            __builtin_prefetch(from + (j + unit) * s.n);  // of the square below
            tile[j] = entries(loadu(from + j * s.n));
        }
    } else {
        const int lanes = s.lanes - lane < W ? s.lanes - lane : W;
        for (int j = 0; j < W; ++j) tile[j] = row + j < s.rows ? entries(load_first(from + j * s.n, lanes)) : vf{};
    }
    transpose(tile);
}

inline uint32_t marked(const uint8_t* mask, const Square& s, int lane) {
    uint32_t word = 0;
    for (int q = 0; q < s.rows; ++q) word |= uint32_t(mask[s.corner + q * s.n + lane] != 0) << q;
    return word;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Writes the kept lanes of two vectors one after the other, and nothing else. Masked stores are microcode on some
// processors: what stands behind is read and written again where it lies before `end`.
inline void put(float* to, const float* end, const vf (&x)[2], uint32_t kept) {
    const int low = __builtin_popcount(kept & 255), high = __builtin_popcount(kept >> 8);
    const vf packed[2] = {packed_lanes(x[0], kept & 255), packed_lanes(x[1], kept >> 8)};
    if (end - to >= unit) {
        const vf before[2] = {loadu(to), loadu(to + low)};
        const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
        storeu(to, lane < low ? packed[0] : before[0]);
        storeu(to + low, lane < high ? packed[1] : before[1]);
    } else {
        store_first(to, packed[0], low);
        store_first(to + low, packed[1], high);
    }
}
#endif

// Writes a word of bits for each sample of the square, and its kept values to where `to` says that the next one goes.
// Nobody else writes before `end`.
template <class Entries>
void compress_square(const float* x, Entries entries, const uint8_t* mask, const Square& s, float** to,
                     const float* end, uint16_t* bits) {
    (void)end;
    const uint32_t inside = (1u << s.rows) - 1;
    to += s.i;
    bits += s.word * s.n + s.i;
#if defined(__AVX512F__)
    vf tile[W];
    load_turned(x, entries, s, 0, 0, tile);
    for (int j = 0; j < s.lanes; ++j) {
        const __m512 y = reinterpret_cast<__m512>(tile[j]);
        const uint32_t large = bits_of(entries.kept(tile[j]));
        const uint32_t kept = mask ? marked(mask, s, j) : large & inside;
        const int count = __builtin_popcount(kept);
        _mm512_mask_storeu_ps(to[j], __mmask16((1u << count) - 1), _mm512_maskz_compress_ps(__mmask16(kept), y));
        to[j] += count;
        bits[j] = uint16_t(kept);
    }
#elif defined(__AVX2__)
    for (int lane = 0; lane < s.lanes; lane += W) {
        vf tile[2][W];
        load_turned(x, entries, s, 0, lane, tile[0]);
        load_turned(x, entries, s, W, lane, tile[1]);
        for (int j = lane; j < lane + W && j < s.lanes; ++j) {
            uint32_t kept = 0;
            for (int half = 0; half < 2; ++half) kept |= uint32_t(bits_of(entries.kept(tile[half][j - lane]))) << half * W;
            kept = mask ? marked(mask, s, j) : kept & inside;
            put(to[j], end, {tile[0][j - lane], tile[1][j - lane]}, kept);
            to[j] += __builtin_popcount(kept);
            bits[j] = uint16_t(kept);
        }
    }
#else
    for (int j = 0; j < s.lanes; ++j) {
        uint32_t kept = mask ? marked(mask, s, j) & inside : 0;
        for (int q = 0; q < s.rows; ++q) {
            const float y = entries.one(x[s.corner + q * s.n + j]);
            if (!mask) kept |= uint32_t(entries.kept(splat_pair(y))[0] != 0) << q;
            if (kept >> q & 1) *to[j]++ = y;
        }
        bits[j] = uint16_t(kept);
    }
#endif
}

// The inverse; `from` holds the next kept value of each sample. The values are over at `end`.
void expand_square(float* x, const Square& s, const float** from, const float* end, const uint16_t* bits) {
    from += s.i;
    bits += s.word * s.n + s.i;
    vf tile[W];
    for (int lane = 0; lane < s.lanes; lane += W) {
        const int lanes = s.lanes - lane < W ? s.lanes - lane : W;
        for (int row = 0; row < s.rows; row += W) {
            for (int j = 0; j < W; ++j) {
                tile[j] = vf{};
                if (j >= lanes) continue;
                const uint32_t kept = bits[lane + j] >> row & all_lanes;
                tile[j] = expanded(from[lane + j], end, kept);
                from[lane + j] += __builtin_popcount(kept);
            }
            transpose(tile);
            float* to = x + s.corner + row * s.n + lane;
            for (int q = 0; q < W && row + q < s.rows; ++q) store_first(to + q * s.n, tile[q], lanes);
        }
    }
}

// How many entries of one channel each sample keeps; returns whether one of them is a NaN.
template <class Entries>
bool count_samples(const float* x, Entries entries, const uint8_t* mask, int64_t area, int64_t n, int32_t* counts,
                   int64_t& entries_kept) {
    std::memset(counts, 0, sizeof(int32_t) * size_t(n));
    vi nan{}, counted{};
    for (int64_t p = 0; p < area; ++p, x += n) {
        if (mask) {
            for (int64_t i = 0; i < n; ++i) counts[i] += mask[p * n + i] != 0;
            continue;
        }
        for (int64_t i = 0; i < n; i += W) {
            const int lanes = int(least(W, n - i));
            __builtin_prefetch(x + i + ahead);
            vf y = entries(load_first(x + i, lanes));
            if (lanes < W) y = keep(y, first_lanes(lanes));  // a shift makes something of lanes that are not there
            const vi before = reinterpret_cast<vi>(load_first(reinterpret_cast<float*>(counts + i), lanes));
            const vi count = before - entries.kept(y);
            store_first(reinterpret_cast<float*>(counts + i), reinterpret_cast<vf>(count), lanes);
            counted -= entries.counted(y);
            nan |= entries.not_a_number(y);
        }
    }
    entries_kept = sum_lanes(counted);
    return bits_of(nan) != 0;
}

template <class Kind>
Packed count(const float* x, const float* scale, const float* shift, const uint8_t* mask, float threshold, int64_t c,
             int64_t area, int64_t n, int32_t* counts, int64_t* starts, int threads) {
    bool nan = false;
    int64_t kept = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(|| : nan) reduction(+ : kept)
    for (int64_t channel = 0; channel < c; ++channel) {
        const int64_t at = channel * area * n;
        from<Kind>(threshold, scale, shift, channel, [&](auto entries) {
            int64_t some = 0;
            nan |= count_samples(x + at, entries, mask ? mask + at : nullptr, area, n, counts + channel * n, some);
            kept += some;
        });
    }
    int64_t values = 0;
    for (int64_t channel = 0; channel < c; ++channel) {
        starts[channel] = values;
        for (int64_t i = channel * n; i < (channel + 1) * n; ++i) values += counts[i];
    }
    starts[c] = values;
    return {mask ? values : kept, nan};
}

template <class Kind>
void fill(const float* x, const float* scale, const float* shift, const uint8_t* mask, float threshold, int64_t c,
          int64_t area, int64_t n, const int32_t* counts, const int64_t* starts, float* values, uint16_t* bits,
          int threads) {
    const int64_t words = units(area);
    Buffer<float*> places(size_t(threads * n));
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int t = 0; t < threads; ++t) {
        float** to = places.data + t * n;
        const float* end = values + starts[(t + 1) * c / threads];
        for (int64_t channel = t * c / threads; channel < (t + 1) * c / threads; ++channel) {
            const int64_t at = channel * area * n;
            to[0] = values + starts[channel];
            for (int64_t i = 1; i < n; ++i) to[i] = to[i - 1] + counts[channel * n + i - 1];
            from<Kind>(threshold, scale, shift, channel, [&](auto entries) {
                for_squares(n, area, [&](const Square& square) {
                    compress_square(x + at, entries, mask ? mask + at : nullptr, square, to, end,
                                    bits + channel * n * words);
                });
            });
        }
    }
}

}  // namespace

// x: [c][area][n], or relu(x * scale + shift) of it where these are given, a channel each. Kept are |x| >= threshold
// (and every NaN) or, where a mask of the same layout is given, what that marks. Writes how many values each sample of
// each channel keeps and where channels start in the compressed form; looks for NaN where there is no mask. Returns
// how many entries are kept.
Packed compress_count(const float* x, const float* scale, const float* shift, const uint8_t* mask, float threshold,
                      int64_t c, int64_t area, int64_t n, int32_t* counts, int64_t* starts, int threads) {
    return count<ByFloats>(x, scale, shift, mask, threshold, c, area, n, counts, starts, threads);
}

// The compressed form of what compress_count has counted, whose results it takes: starts[c] values, and all bits.
void compress_fill(const float* x, const float* scale, const float* shift, const uint8_t* mask, float threshold,
                   int64_t c, int64_t area, int64_t n, const int32_t* counts, const int64_t* starts, float* values,
                   uint16_t* bits, int threads) {
    fill<ByFloats>(x, scale, shift, mask, threshold, c, area, n, counts, starts, values, bits, threads);
}

// The same of bfloat16, of which two neighbouring samples make a value (their number n is even): samples, counts and
// bits below are those of n / 2 pairs.
Packed compress_count_pairs(const bf16* x, const float* scale, const float* shift, float threshold, int64_t c,
                            int64_t area, int64_t n, int32_t* counts, int64_t* starts, int threads) {
    if (n % 2) invalid("compress_count_pairs: the number of samples must be even.");
    return count<ByPairs>(reinterpret_cast<const float*>(x), scale, shift, nullptr, threshold, c, area, n / 2, counts,
                          starts, threads);
}

void compress_fill_pairs(const bf16* x, const float* scale, const float* shift, float threshold, int64_t c,
                         int64_t area, int64_t n, const int32_t* counts, const int64_t* starts, float* values,
                         uint16_t* bits, int threads) {
    if (n % 2) invalid("compress_fill_pairs: the number of samples must be even.");
    fill<ByPairs>(reinterpret_cast<const float*>(x), scale, shift, nullptr, threshold, c, area, n / 2, counts, starts,
                  values, bits, threads);
}

// The inverse: x [c][area][n] with zeros where nothing was kept.
void expand(const float* values, const uint16_t* bits, const int64_t* starts, int64_t c, int64_t area, int64_t n,
            float* x, int threads) {
    const int64_t words = units(area);
    Buffer<const float*> cursors(threads * n);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int t = 0; t < threads; ++t) {
        const float** from = cursors.data + t * n;
        for (int64_t channel = t * c / threads; channel < (t + 1) * c / threads; ++channel) {
            const uint16_t* own = bits + channel * n * words;
            const float* next = values + starts[channel];
            for (int64_t i = 0; i < n; ++i) {
                from[i] = next;
                for (int64_t word = 0; word < words; ++word) next += __builtin_popcount(own[word * n + i]);
            }
            for_squares(n, area, [&](const Square& square) {
                expand_square(x + channel * area * n, square, from, values + starts[c], own);
            });
        }
    }
}

// Whether a compressed form from elsewhere holds as many values as its bits say, in order, within `room` values.
bool is_whole(const uint16_t* bits, const int64_t* starts, int64_t c, int64_t area, int64_t n, int64_t room,
              int threads) {
    const int64_t words = units(area);
    const uint16_t beyond = area % unit ? uint16_t(0xffff << area % unit) : 0;  // of the last word
    bool whole = starts[0] == 0 && starts[c] <= room;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : whole)
    for (int64_t channel = 0; channel < c; ++channel) {
        const uint16_t* own = bits + channel * words * n;
        int64_t count = 0;
        for (int64_t i = 0; i < words * n; ++i) count += __builtin_popcount(own[i]);
        for (int64_t i = (words - 1) * n; i < words * n; ++i) whole = whole && !(own[i] & beyond);
        whole = whole && starts[channel + 1] - starts[channel] == count && starts[channel] >= 0;
    }
    return whole;
}

}  // namespace torchswat::SWAT_ISA
