// Comparisons of whole vectors as bits, one bit a lane, the first lane lowest.
#pragma once
#include "compress_lanes.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {

typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef int32_t vi_any __attribute__((vector_size(4 * W), aligned(4), may_alias));

constexpr unsigned all_lanes = unsigned((uint64_t(1) << W) - 1);

static inline vi splat_int(int32_t value) { return vi{} + value; }
static inline unsigned first_lanes(int64_t lanes) { return lanes >= W ? all_lanes : (1u << lanes) - 1; }

// Bits of the lanes that are -1 (true), out of lanes that are 0 or -1.
static inline unsigned bits_of(vi truth) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(truth));
#elif defined(__AVX2__)
    return unsigned(_mm256_movemask_ps(reinterpret_cast<__m256>(truth)));
#elif defined(__SSE2__)
    return unsigned(_mm_movemask_ps(reinterpret_cast<__m128>(truth)));
#else
    unsigned bits = 0;
    for (int lane = 0; lane < W; ++lane) bits |= unsigned(truth[lane] & 1) << lane;
    return bits;
#endif
}

// Bits of the lanes where a > b; gcc makes a comparison's bits into lanes and these into bits again otherwise.
static inline unsigned bits_of_greater(vi a, vi b) {
#if defined(__AVX512F__)
    return _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#else
    return bits_of(a > b);
#endif
}

// A limit that zeros stay below: the smallest one arrives here as zero where subnormal numbers are flushed.
static inline vf above_zero(float limit) {
    int32_t bits;
    std::memcpy(&bits, &limit, sizeof bits);
    return reinterpret_cast<vf>(splat_int(bits < 1 ? 1 : bits));
}

// Whether a magnitude is not smaller than such a limit, or a NaN: by their bits, which are in the order of the numbers
// and which nothing flushes.
static inline vi at_least(vf x, vf limit) {
    return (reinterpret_cast<vi>(x) & 0x7fffffff) >= reinterpret_cast<vi>(limit);
}

// x where the bit is set, zero elsewhere.
static inline vf keep(vf x, unsigned bits) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_maskz_mov_ps(__mmask16(bits), reinterpret_cast<__m512>(x)));
#else
    vi lane_bit{};
    for (int lane = 0; lane < W; ++lane) lane_bit[lane] = 1 << lane;
    return reinterpret_cast<vf>(reinterpret_cast<vi>(x) & ((splat_int(int32_t(bits)) & lane_bit) != 0));
#endif
}

// Bits of the lanes that ReLU lets through: positive ones, and NaN, which must not be hidden.
static inline unsigned not_negative_or_zero(vf x) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_setzero_ps(), _CMP_NLE_UQ);
#elif defined(__AVX2__)
    return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(x), _mm256_setzero_ps(), _CMP_NLE_UQ)));
#else
    return bits_of(~(x <= vf{})) & all_lanes;
#endif
}

// Writes the lanes whose bit is set one after the other; up to W entries at `to` may be written. Returns how many.
static inline int compress(int32_t* to, vi x, unsigned bits) {
#if defined(__AVX512F__)
    const __m512i packed = _mm512_maskz_compress_epi32(__mmask16(bits), reinterpret_cast<__m512i>(x));
    _mm512_storeu_si512(to, packed);  // a compress in memory is microcode on some processors
    return __builtin_popcount(bits);
#elif defined(__AVX2__)
    const __m256i packed = _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(x), lanes_of(compressed_lanes[bits]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
    return __builtin_popcount(bits);
#else
    int count = 0;
    for (; bits; bits &= bits - 1) to[count++] = x[__builtin_ctz(bits)];
    return count;
#endif
}

// The lanes whose bit is set, first to last, in front; the others are of no meaning.
static inline vf packed_lanes(vf x, unsigned bits) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_maskz_compress_ps(__mmask16(bits), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<vf>(
        _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(x), lanes_of(compressed_lanes[bits])));
#else
    vf packed{};
    for (int count = 0; bits; bits &= bits - 1) packed[count++] = x[__builtin_ctz(bits)];
    return packed;
#endif
}

// The inverse: the values from `from` on go to the lanes whose bit is set, in order; the others are zero. Nothing is
// read at `end`.
static inline vf expanded(const float* from, const float* end, unsigned bits) {
#if defined(__AVX512F__)
    (void)end;
    return reinterpret_cast<vf>(_mm512_maskz_expandloadu_ps(__mmask16(bits), from));
#elif defined(__AVX2__)
    const vf next = end - from >= W ? loadu(from) : load_first(from, __builtin_popcount(bits));
    const __m256 spread = _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(next), lanes_of(expanded_lanes[bits]));
    return keep(reinterpret_cast<vf>(spread), bits);
#else
    (void)end;
    vf x{};
    for (; bits; bits &= bits - 1) x[__builtin_ctz(bits)] = *from++;
    return x;
#endif
}

static inline int64_t sum_lanes(vi x) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(reinterpret_cast<__m512i>(x)));
    const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(reinterpret_cast<__m512i>(x), 1));
    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
#else
    int64_t sum = 0;
    for (int lane = 0; lane < W; ++lane) sum += x[lane];
    return sum;
#endif
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace torchswat::SWAT_ISA
