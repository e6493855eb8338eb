// bfloat16 in memory, float32 in registers; and pairs of bfloat16 that are multiplied together.
//
//     bf16        the upper half of a float32, rounded to nearest even; a NaN stays one
//     a pair      two bf16 in 32 bits, the first in the lower half: of two channels, or of two samples
//     dot         sum + a.first * b.first + a.second * b.second, accumulated in float32
//
// Processors with AVX512_BF16 have `dot` as one instruction; elsewhere it is two multiply-adds and what takes the
// halves apart. That instruction reads and leaves subnormal numbers as zeros, and so does its rounding.
#pragma once
#include "shapes.h"
#include "stream.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {

typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef uint16_t vhs __attribute__((vector_size(4 * W), may_alias));                 // a whole register of them
typedef uint16_t vhs_any __attribute__((vector_size(4 * W), aligned(2), may_alias));
typedef uint32_t vpairs __attribute__((vector_size(4 * W), may_alias));  // in registers, or aligned

// GCC 12 takes such a vector apart in memory where it converts it itself; the masked form does not warn there.
static inline vpairs widen_bits(vh x) {
#if defined(__AVX512F__)
    return reinterpret_cast<vpairs>(_mm512_maskz_cvtepu16_epi32(__mmask16(-1), reinterpret_cast<__m256i>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<vpairs>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)));
#else
    return __builtin_convertvector(x, vpairs);
#endif
}
static inline vf widen(vh x) { return reinterpret_cast<vf>(widen_bits(x) << 16); }

// The bits of the rounded x, in the upper half of each lane; what is in the lower half has no meaning.
static inline vpairs rounded_upper_bits(vf x) {
    const vpairs bits = reinterpret_cast<vpairs>(x);
    const vpairs rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return (x == x) ? rounded : vpairs{} + 0x7fc00000;
}
static inline vpairs rounded_bits(vf x) { return rounded_upper_bits(x) >> 16; }
static inline vh lower_halves(vpairs x) {
#if defined(__AVX512F__)
    return reinterpret_cast<vh>(_mm512_maskz_cvtepi32_epi16(__mmask16(-1), reinterpret_cast<__m512i>(x)));
#elif defined(__AVX2__)
    const __m256i bits = reinterpret_cast<__m256i>(x & 0xffff);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0b1000);
    return reinterpret_cast<vh>(_mm256_castsi256_si128(packed));
#else
    return __builtin_convertvector(x, vh);
#endif
}
static inline vh narrow(vf x) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<vh>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
    return lower_halves(rounded_bits(x));
#endif
}
static inline vf rounded(vf x) { return widen(narrow(x)); }

// ---- the same names as for floats ---------------------------------------------------------------------------------

static inline vh load_bits(const bf16* p) {
    vh x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
static inline vh load_first_bits(const bf16* p, int lanes) {
    if (lanes >= W) return load_bits(p);
    vh x{};
    if (lanes > 0) std::memcpy(&x, p, sizeof(bf16) * size_t(lanes));  // of none, the address may be null
    return x;
}
static inline vf loadu(const bf16* p) { return widen(load_bits(p)); }
static inline vf load_first(const bf16* p, int lanes) { return widen(load_first_bits(p, lanes)); }
static inline void storeu(bf16* p, vf x) {
    const vh bits = narrow(x);
    std::memcpy(p, &bits, sizeof bits);
}
static inline void store_first(bf16* p, vf x, int lanes) {
    const vh bits = narrow(x);
    if (lanes > 0) std::memcpy(p, &bits, sizeof(bf16) * size_t(lanes < W ? lanes : W));
}
// Half a line at a time is not worth a way past the caches.
template <bool streaming> static inline void put(bf16* to, vf x) { storeu(to, x); }

// A register as it is in memory: W floats, or 2W bf16.
static inline vf raw_at(const float* p) { return loadu(p); }
static inline vf raw_at(const bf16* p) { return reinterpret_cast<vf>(vhs(*reinterpret_cast<const vhs_any*>(p))); }
template <bool streaming> static inline void put_raw(float* to, vf x) { put<streaming>(to, x); }
template <bool streaming> static inline void put_raw(bf16* to, vf x) {
    if constexpr (streaming) return put<true>(reinterpret_cast<float*>(to), x);
    *reinterpret_cast<vhs_any*>(to) = reinterpret_cast<vhs>(x);
}

// ---- pairs ----------------------------------------------------------------------------------------------------------

static inline vf splat_pair(float pair) {
    uint32_t bits;
    std::memcpy(&bits, &pair, sizeof bits);
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_set1_epi32(int(bits)));
#else
    return reinterpret_cast<vf>(vpairs{} + bits);
#endif
}
static inline vf first_of(vf pairs) { return reinterpret_cast<vf>(reinterpret_cast<vpairs>(pairs) << 16); }
static inline vf second_of(vf pairs) { return reinterpret_cast<vf>(reinterpret_cast<vpairs>(pairs) & 0xffff0000u); }
static inline vf pair_up(vh first, vh second) {
    return reinterpret_cast<vf>(widen_bits(first) | widen_bits(second) << 16);
}
static inline vf pair_up(vf first, vf second) { return pair_up(narrow(first), narrow(second)); }

static inline vf dot(vf sum, vf a, vf b) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                                                 reinterpret_cast<__m512bh>(b)));
#else
    return sum + first_of(a) * first_of(b) + second_of(a) * second_of(b);
#endif
}

// ---- what a product multiplies: floats, or pairs ---------------------------------------------------------------------

// A lane and a value of a list are a float32, ...
struct Singles {
    using Entry = float;  // of the tensors
    static constexpr int channels = 1;
    static constexpr bool by_bits = false;  // whether any bit makes a value one that is kept

    static SWAT_INLINE vf spread(float value) { return splat(value); }
    static SWAT_INLINE vf add(vf sum, vf value, vf x) { return sum + value * x; }
    static SWAT_INLINE vf join(vf a, vf b) { return a + b; }
};

// ... or two bfloat16, of neighbouring channels or samples. One of the value's may be zero.
struct Pairs {
    using Entry = bf16;
    static constexpr int channels = 2;
    static constexpr bool by_bits = true;

    static SWAT_INLINE vf spread(float value) { return splat_pair(value); }
    static SWAT_INLINE vf add(vf sum, vf value, vf x) { return dot(sum, value, x); }
};

}  // namespace torchswat::SWAT_ISA
