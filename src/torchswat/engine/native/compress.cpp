// Dense activations to their compressed form (activations.h) and back, in one pass each.
//
// In memory 16 samples of one position stand together; the compressed form wants 16 positions of one sample:
//
//            n0  n1 ... n15                  p0  p1 ... p15
//       p0 [  .   .       . ]          n0  [  .   .       . ]  --> word of bits, kept values to n0's strip
//       p1 [  .   .       . ]   turn   n1  [  .   .       . ]  --> ...
//       ...                     --->   ...
//      p15 [  .   .       . ]          n15 [  .   .       . ]
//
// Each channel is read in the order of memory, and its kept values go to one strip a sample (in L2), which are then
// laid end to end. Where they belong in `values` is known only when all channels before are counted: the first
// thread writes in place, the others to memory of their own that is copied at the end. (Waiting for each other at
// every channel would save the copy, but a thread that the system holds up would hold up all.)
// Bytes: 4 read an entry, 4 * density + 1/8 written, twice that where copied.
#include "activations.h"
#include "buffer.h"
#include "compress_lanes.h"
#include "kernels.h"
#include "transpose.h"

namespace torchswat::SWAT_ISA {

namespace {

struct Strips {  // of one channel, one a sample
    int64_t distance;
    float* values;   // [n][distance]
    int64_t* count;  // [n]
};

// Distance of strips: room for a map and for what a vector writes too much, and an odd number of cache lines, so that
// strips do not meet in one set of L1.
int64_t strip_distance(int64_t area) { return (area / (2 * unit) + 1) * 2 * unit + unit; }

// A square of the dense form: positions p..p+rows-1 of samples i..i+lanes-1, at most 16 each.
struct Square {
    int64_t n, corner;  // floats from row to row; of the first entry
    int64_t word;       // of bits
    int64_t i;
    int rows, lanes;
};

inline int at_most_unit(int64_t count) { return int(count < unit ? count : unit); }

template <class Visit> void for_squares(int64_t n, int64_t area, const Visit& visit) {
    for (int64_t p = 0; p < area; p += unit)
        for (int64_t i = 0; i < n; i += unit)
            visit(Square{n, p * n + i, p / unit, i, at_most_unit(area - p), at_most_unit(n - i)});
}

// Rows row..row+W-1 and lanes lane..lane+W-1 of the square, turned: one vector of positions for each sample.
inline void load_turned(const float* x, const Square& s, int row, int lane, vf (&tile)[W]) {
    const float* from = x + s.corner + row * s.n + lane;
    if (s.rows - row >= W && s.lanes - lane >= W) {
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) tile[j] = loadu(from + j * s.n);
    } else {
        const int lanes = s.lanes - lane < W ? s.lanes - lane : W;
        for (int j = 0; j < W; ++j) tile[j] = row + j < s.rows ? load_first(from + j * s.n, lanes) : vf{};
    }
    transpose(tile);
}

inline uint32_t marked(const uint8_t* mask, const Square& s, int lane) {
    uint32_t word = 0;
    for (int q = 0; q < s.rows; ++q) word |= uint32_t(mask[s.corner + q * s.n + lane] != 0) << q;
    return word;
}

// Writes a word of bits for each sample of the square and appends the kept values to the samples' strips.
void compress_square(const float* x, const uint8_t* mask, float threshold, const Square& s, const Strips& strips,
                     int64_t words, uint16_t* bits) {
    const uint32_t inside = (1u << s.rows) - 1;
#if defined(__AVX512F__)
    vf tile[W];
    load_turned(x, s, 0, 0, tile);
    const __m512 limit = _mm512_set1_ps(threshold);
    for (int j = 0; j < s.lanes; ++j) {
        const __m512 y = reinterpret_cast<__m512>(tile[j]);
        const uint32_t large = _mm512_cmp_ps_mask(_mm512_abs_ps(y), limit, _CMP_NLT_UQ);
        const uint32_t kept = mask ? marked(mask, s, j) : large & inside;
        int64_t& count = strips.count[s.i + j];
        float* to = strips.values + (s.i + j) * strips.distance + count;
        _mm512_storeu_ps(to, _mm512_maskz_compress_ps(__mmask16(kept), y));
        count += __builtin_popcount(kept);
        bits[(s.i + j) * words + s.word] = uint16_t(kept);
    }
#elif defined(__AVX2__)
    const __m256 limit = _mm256_set1_ps(threshold), sign = _mm256_set1_ps(-0.0f);
    for (int lane = 0; lane < s.lanes; lane += W) {
        vf tile[2][W];
        load_turned(x, s, 0, lane, tile[0]);
        load_turned(x, s, W, lane, tile[1]);
        for (int j = 0; j < W && lane + j < s.lanes; ++j) {
            const int64_t sample = s.i + lane + j;
            uint32_t kept = 0;
            for (int half = 0; half < 2; ++half) {
                const __m256 size = _mm256_andnot_ps(sign, reinterpret_cast<__m256>(tile[half][j]));
                kept |= uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(size, limit, _CMP_NLT_UQ))) << half * W;
            }
            kept = mask ? marked(mask, s, lane + j) : kept & inside;
            for (int half = 0; half < 2; ++half) {
                const uint32_t byte = kept >> half * W & 255;
                const __m256i lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(compressed_lanes[byte])));
                const __m256 values = _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(tile[half][j]), lanes);
                _mm256_storeu_ps(strips.values + sample * strips.distance + strips.count[sample], values);
                strips.count[sample] += __builtin_popcount(byte);
            }
            bits[sample * words + s.word] = uint16_t(kept);
        }
    }
#else
    for (int j = 0; j < s.lanes; ++j) {
        float* to = strips.values + (s.i + j) * strips.distance + strips.count[s.i + j];
        uint32_t kept = mask ? marked(mask, s, j) & inside : 0;
        int64_t count = 0;
        for (int q = 0; q < s.rows; ++q) {
            const float y = x[s.corner + q * s.n + j];
            if (!mask) kept |= uint32_t(!((y < 0 ? -y : y) < threshold)) << q;
            to[count] = y;
            count += kept >> q & 1;
        }
        strips.count[s.i + j] += count;
        bits[(s.i + j) * words + s.word] = uint16_t(kept);
    }
#endif
}

// The inverse; `from` holds the next kept value of each sample.
void expand_square(float* x, const Square& s, const float** from, int64_t words, const uint16_t* bits) {
#if defined(__AVX512F__)
    vf tile[W];
    for (int j = 0; j < W; ++j) {
        tile[j] = vf{};
        if (j >= s.lanes) continue;
        const __mmask16 kept = bits[(s.i + j) * words + s.word];
        tile[j] = reinterpret_cast<vf>(_mm512_maskz_expandloadu_ps(kept, from[s.i + j]));
        from[s.i + j] += __builtin_popcount(kept);
    }
    transpose(tile);
    for (int q = 0; q < s.rows; ++q) store_first(x + s.corner + q * s.n, tile[q], s.lanes);
#else
    for (int j = 0; j < s.lanes; ++j) {
        const uint32_t kept = bits[(s.i + j) * words + s.word];
        for (int q = 0; q < s.rows; ++q) x[s.corner + q * s.n + j] = kept >> q & 1 ? *from[s.i + j]++ : 0.0f;
    }
#endif
}

}  // namespace

// x: [c][area][n]. Keeps |x| >= threshold (and every NaN) or, where a mask of the same layout is given, what that
// marks. Returns how many are kept; if that is more than `capacity`, values are missing: call again with room.
int64_t compress(const float* x, const uint8_t* mask, float threshold, int64_t c, int64_t area, int64_t n,
                 float* values, int64_t capacity, uint16_t* bits, int64_t* starts, int threads) {
    const int64_t words = units(area), distance = strip_distance(area);
    const int64_t widest = (c + threads - 1) / threads * area * n;  // entries of a thread
    const int64_t room = widest < capacity ? widest : capacity;
    Buffer<float> strip_values(threads * n * distance), aside((threads - 1) * room);
    Buffer<int64_t> strip_counts(threads * n);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int t = 0; t < threads; ++t) {
        const Strips strips{distance, strip_values.data + t * n * distance, strip_counts.data + t * n};
        float* to = t ? aside.data + (t - 1) * room : values;
        int64_t free = t ? room : capacity;
        for (int64_t channel = t * c / threads; channel < (t + 1) * c / threads; ++channel) {
            std::memset(strips.count, 0, sizeof(int64_t) * n);
            const int64_t first = channel * area * n;
            for_squares(n, area, [&](const Square& square) {
                compress_square(x + first, mask ? mask + first : nullptr, threshold, square, strips, words,
                                bits + channel * n * words);
            });
            int64_t kept = 0;
            for (int64_t i = 0; i < n; ++i) kept += strips.count[i];
            starts[channel + 1] = kept;
            free -= kept;
            if (free < 0) continue;
            for (int64_t i = 0; i < n; to += strips.count[i++])
                std::memcpy(to, strips.values + i * distance, sizeof(float) * strips.count[i]);
        }
    }
    starts[0] = 0;
    for (int64_t channel = 0; channel < c; ++channel) starts[channel + 1] += starts[channel];
    if (starts[c] > capacity) return starts[c];
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int t = 1; t < threads; ++t) {
        const int64_t start = starts[t * c / threads];
        const int64_t count = starts[(t + 1) * c / threads] - start;
        std::memcpy(values + start, aside.data + (t - 1) * room, sizeof(float) * count);
    }
    return starts[c];
}

// The inverse of compress: x [c][area][n] with zeros where nothing was kept.
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
                for (int64_t word = 0; word < words; ++word) next += __builtin_popcount(own[i * words + word]);
            }
            for_squares(n, area, [&](const Square& square) {
                expand_square(x + channel * area * n, square, from, words, own);
            });
        }
    }
}

}  // namespace torchswat::SWAT_ISA
