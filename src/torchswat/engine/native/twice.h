// 2W neighbouring entries at a time, for what is done to each of them alone.
//
//     in memory        float: two registers        bf16: one register, W pairs (first entry in the lower half)
//     widened, Two     a: the first W, b: the rest  a: the first of each pair, b: the second
//
// So bfloat16 is widened by a shift and a mask, without shuffles, and a register of it is a whole line or half of one.
#pragma once
#include "bfloat16.h"
#include "mask.h"

namespace torchswat::SWAT_ISA {

struct Two {
    vf a, b;
};

template <class Function> static inline Two each(Two x, Function f) { return {f(x.a), f(x.b)}; }
static inline Two operator+(Two x, Two y) { return {x.a + y.a, x.b + y.b}; }

// ---- memory -----------------------------------------------------------------------------------------------------------

static inline Two twice_at(const float* p) { return {loadu(p), loadu(p + W)}; }
static inline vhs twice_at(const bf16* p) { return reinterpret_cast<vhs>(raw_at(p)); }

template <bool streaming> static inline void put_twice(float* to, Two x) {
    put<streaming>(to, x.a);
    put<streaming>(to + W, x.b);
}
template <bool streaming> static inline void put_twice(bf16* to, vhs x) {
    put_raw<streaming>(to, reinterpret_cast<vf>(x));
}

template <class Entry> static inline void prefetch_twice(const Entry* p) {
    __builtin_prefetch(p);
    if (2 * W * sizeof(Entry) > 64) __builtin_prefetch(p + W);
}

static inline Two widened(Two x) { return x; }
static inline Two widened(vhs x) { return {first_of(reinterpret_cast<vf>(x)), second_of(reinterpret_cast<vf>(x))}; }

// The inverse, rounded to what an entry can hold.
static inline Two narrowed(Two x, const float*) { return x; }
static inline vhs narrowed(Two x, const bf16*) {
#if defined(__AVX512BF16__)
    vhs order{};  // of the entries when b is behind a
    for (int lane = 0; lane < 2 * W; ++lane) order[lane] = uint16_t(lane % 2 * W + lane / 2);
    const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(x.b), reinterpret_cast<__m512>(x.a));
    return reinterpret_cast<vhs>(
        _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(order), reinterpret_cast<__m512i>(both)));
#else
    return reinterpret_cast<vhs>(rounded_upper_bits(x.a) >> 16 | (rounded_upper_bits(x.b) & 0xffff0000u));
#endif
}

// The same where they are entries already: to the bit, which rounding is not for subnormal numbers.
static inline Two narrowed_exactly(Two x, const float*) { return x; }
static inline vhs narrowed_exactly(Two x, const bf16*) {
    return reinterpret_cast<vhs>(reinterpret_cast<vpairs>(x.a) >> 16 | reinterpret_cast<vpairs>(x.b));
}
static inline void store_first_exactly(float* p, vf x, int lanes) { store_first(p, x, lanes); }
static inline void store_first_exactly(bf16* p, vf x, int lanes) {
    const vh bits = lower_halves(reinterpret_cast<vpairs>(x) >> 16);
    std::memcpy(p, &bits, sizeof(bf16) * size_t(lanes));
}

// Numbers below 256, one for each of 2W entries that were widened, as bytes in the order of the entries.
typedef uint8_t vb __attribute__((vector_size(W)));

// GCC 12 takes such a vector apart in memory where it converts it itself; the masked forms do not warn there.
static inline vi widen_entry(vb x) {
#if defined(__AVX512F__)
    return reinterpret_cast<vi>(_mm512_maskz_cvtepu8_epi32(__mmask16(-1), reinterpret_cast<__m128i>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<vi>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(reinterpret_cast<int64_t>(x))));
#else
    return __builtin_convertvector(x, vi);
#endif
}
static inline vi widen_entry(vh x) { return reinterpret_cast<vi>(widen_bits(x)); }

static inline void put_bytes_twice(uint8_t* to, vi a, vi b, const float*) {
    const vb first = __builtin_convertvector(a, vb), rest = __builtin_convertvector(b, vb);
    std::memcpy(to, &first, sizeof first);
    std::memcpy(to + W, &rest, sizeof rest);
}
static inline void put_bytes_twice(uint8_t* to, vi a, vi b, const bf16*) {
    const vh pairs = lower_halves(reinterpret_cast<vpairs>(a | b << 8));
    std::memcpy(to, &pairs, sizeof pairs);
}

// ---- ReLU -------------------------------------------------------------------------------------------------------------

// x where `by` is positive or a NaN (which must not be hidden), zero elsewhere.
static inline vf where_positive(vf x, vf by) {
#if defined(__AVX512F__)
    return keep(x, not_negative_or_zero(by));
#else
    return reinterpret_cast<vf>(reinterpret_cast<vi>(x) & ~reinterpret_cast<vi>(by <= vf{}));
#endif
}

// max(x, 0), and a bit for each entry that it lets through.
static inline Two rectified(Two x, uint32_t& bits) {
    const unsigned a = not_negative_or_zero(x.a), b = not_negative_or_zero(x.b);
    bits = a | b << W;
    return {keep(x.a, a), keep(x.b, b)};
}
static inline vhs rectified(vhs x, uint32_t& bits) {
    constexpr short minus_infinity = short(0xff80);  // larger than all negative numbers: of what is above, a NaN or zero
#if defined(__AVX512F__)
    const __m512i entries = reinterpret_cast<__m512i>(x);
    bits = _mm512_mask_cmpgt_epi16_mask(_mm512_test_epi16_mask(entries, entries), entries,
                                        _mm512_set1_epi16(minus_infinity));
    return reinterpret_cast<vhs>(_mm512_maskz_mov_epi16(bits, entries));
#else
    typedef int16_t vhs_signed __attribute__((vector_size(4 * W)));
    const vhs_signed through = (reinterpret_cast<vhs_signed>(x) > minus_infinity) & (x != 0);
#if defined(__AVX2__)
    const __m256i lanes = reinterpret_cast<__m256i>(through);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    bits = uint32_t(_mm_movemask_epi8(bytes));
#elif defined(__SSE2__)
    bits = uint32_t(_mm_movemask_epi8(_mm_packs_epi16(reinterpret_cast<__m128i>(through), _mm_setzero_si128())));
#else
    bits = 0;
    for (int lane = 0; lane < 2 * W; ++lane) bits |= uint32_t(through[lane] & 1) << lane;
#endif
    return x & reinterpret_cast<vhs>(through);
#endif
}

// x where the bit is set, zero elsewhere.
static inline Two keep_twice(Two x, uint32_t bits) { return {keep(x.a, bits & all_lanes), keep(x.b, bits >> W & all_lanes)}; }
static inline vhs keep_twice(vhs x, uint32_t bits) {
#if defined(__AVX512F__)
    return reinterpret_cast<vhs>(_mm512_maskz_mov_epi16(bits, reinterpret_cast<__m512i>(x)));
#else
    vhs lane_bit{};
    for (int lane = 0; lane < 2 * W; ++lane) lane_bit[lane] = uint16_t(1u << lane);
    return x & reinterpret_cast<vhs>(((vhs{} + uint16_t(bits)) & lane_bit) != 0);
#endif
}

}  // namespace torchswat::SWAT_ISA
