// Numbers of 8 bits, four neighbouring channels to a lane, and what follows a product of them.
//
//     X [ceil(c / 4)][h][w][n][4]   uint8. To packing, tiles and lists the four bytes are one float.
//     a four of weights             four int8 in 32 bits: of four channels, one filter and one tap
//     dot4                          sum + x0*w0 + x1*w1 + x2*w2 + x3*w3 in int32, whole numbers without rounding
//
//     y = sum * factor + shift [+ residual * residual_factor], ReLU, each rounded on its own
//     a byte of the result is y rounded to the nearest even number, plus a zero point, within 0..255
//
// So the results are bitwise equal on all instruction sets. Processors with AVX512_VNNI have `dot4` as one instruction
// (its signed operand is the one that may lie in memory: vectors of X are loaded before it).
#pragma once
#include "kernels.h"
#include "mask.h"
#include "sparse_weights.h"

namespace torchswat::SWAT_ISA {

static SWAT_INLINE vi integers(vf x) { return reinterpret_cast<vi>(x); }
static SWAT_INLINE vf as_floats(vi x) { return reinterpret_cast<vf>(x); }

static SWAT_INLINE vf dot4(vf sum, vf weights, vf x) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<vf>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(x),
                                                    reinterpret_cast<__m512i>(weights)));
#elif defined(__AVX512F__)
    // In two halves of 16 bits: products of unsigned and signed bytes do not fit the 16 bits that vpmaddubsw has for two.
    const __m512i bytes = reinterpret_cast<__m512i>(x), fours = reinterpret_cast<__m512i>(weights);
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(bytes, _mm512_set1_epi32(0x00ff00ff)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(fours, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(bytes, 8), _mm512_srai_epi16(fours, 8));
    return as_floats(integers(sum) + reinterpret_cast<vi>(even) + reinterpret_cast<vi>(odd));
#elif defined(__AVX2__)
    const __m256i bytes = reinterpret_cast<__m256i>(x), fours = reinterpret_cast<__m256i>(weights);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(bytes, _mm256_set1_epi32(0x00ff00ff)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(fours, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(bytes, 8), _mm256_srai_epi16(fours, 8));
    return as_floats(integers(sum) + reinterpret_cast<vi>(even) + reinterpret_cast<vi>(odd));
#else
    const vpairs bytes = reinterpret_cast<vpairs>(x), fours = reinterpret_cast<vpairs>(weights);
    vi total = integers(sum);
    for (int i = 0; i < 4; i++) {
        total += reinterpret_cast<vi>(bytes >> 8 * i & 255) * (reinterpret_cast<vi>(fours << (24 - 8 * i)) >> 24);
    }
    return as_floats(total);
#endif
}

// The third kind of lane that products multiply (bfloat16.h has the others): a sum is an int32.
struct Fours {
    using Entry = float;
    static constexpr int channels = 1;  // a four counts as one
    static constexpr bool by_bits = true;

    static SWAT_INLINE vf spread(float four) { return splat_pair(four); }
    static SWAT_INLINE vf add(vf sum, vf weights, vf x) { return dot4(sum, weights, x); }
    static SWAT_INLINE vf join(vf a, vf b) { return as_floats(integers(a) + integers(b)); }
};

// A byte in all four places.
static inline float four_times(int byte) {
    const uint32_t bits = uint32_t(byte & 255) * 0x01010101u;
    float four;
    std::memcpy(&four, &bits, sizeof four);
    return four;
}

// ---- the end of a product -------------------------------------------------------------------------------------------

// Keeps the compiler from making one rounding of a product and a sum.
static SWAT_INLINE vf rounded_once(vf x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#elif defined(__SSE__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
    return x;
}

static SWAT_INLINE vf whole_to_float(vi x) { return __builtin_convertvector(x, vf); }

// To the nearest number, halves to the even one; below 2^31 in magnitude.
static SWAT_INLINE vi nearest(vf x) {
#if defined(__AVX512F__)
    return reinterpret_cast<vi>(_mm512_maskz_cvtps_epi32(__mmask16(-1), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<vi>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x)));
#elif defined(__SSE2__)
    return reinterpret_cast<vi>(_mm_cvtps_epi32(reinterpret_cast<__m128>(x)));
#elif defined(__aarch64__)
    return reinterpret_cast<vi>(vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(x)));
#else
    vi y{};
    for (int lane = 0; lane < W; lane++) y[lane] = int32_t(__builtin_lrintf(x[lane]));
    return y;
#endif
}

static SWAT_INLINE vf at_least_zero(vf x) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_maskz_max_ps(__mmask16(-1), reinterpret_cast<__m512>(x), _mm512_setzero_ps()));
#else
    return x > vf{} ? x : vf{};
#endif
}

// Four numbers to a lane, each within 0..255 or brought there.
static SWAT_INLINE vf bytes_of(const vi (&y)[4], int zero) {
#if defined(__AVX512F__)
    const auto pack = [&](vi a, vi b) {
        const __m512i both = _mm512_packs_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
        return _mm512_adds_epi16(both, _mm512_set1_epi16(short(zero)));
    };
    const __m512i order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    const __m512i packed = _mm512_packus_epi16(pack(y[0], y[1]), pack(y[2], y[3]));
    return reinterpret_cast<vf>(_mm512_shuffle_epi8(packed, order));
#else
    vi all{};
    for (int i = 0; i < 4; i++) {
        vi byte = y[i] + zero;
        byte = byte < 0 ? vi{} : byte;
        byte = byte > 255 ? vi{} + 255 : byte;
        all |= byte << 8 * i;
    }
    return as_floats(all);
#endif
}

static SWAT_INLINE vf byte_of(vf fours, int i) {
    return whole_to_float(integers(as_floats(reinterpret_cast<vi>(reinterpret_cast<vpairs>(fours) >> 8 * i & 255))));
}

// Of fours there is no other activation.
static inline Activation rectified(bool relu) {
    return {relu ? Activation::clip : Activation::none, 0, __builtin_inff()};
}

// The end of four filters' sums, of which `count` are there.
class FourFilters {
    vf factor[4], shift[4], residual_factor;
    int zero;
    bool relu;

  public:
    const int count;

    FourFilters(const QuantizedEnd& end, int first, int filters, bool relu)
        : residual_factor(splat(end.residual_factor)), zero(end.zero), relu(relu),
          count(filters - first < 4 ? filters - first : 4) {
        for (int i = 0; i < count; i++) factor[i] = splat(end.factor[first + i]), shift[i] = splat(end.shift[first + i]);
        for (int i = count; i < 4; i++) factor[i] = shift[i] = vf{};
    }

    template <bool added> SWAT_INLINE vf number(int i, vf sum, vf residual) const {
        vf y = rounded_once(whole_to_float(integers(sum)) * factor[i]) + shift[i];
        if constexpr (added) y = rounded_once(y) + rounded_once(byte_of(residual, i) * residual_factor);
        return relu ? at_least_zero(y) : y;
    }
    // Bytes of a vector of results; the sums of the filters lie `apart` floats from each other.
    template <bool added> SWAT_INLINE vf bytes(const float* sums, int64_t apart, vf residual) const {
        vi y[4];
        if (count == 4) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) y[i] = nearest(number<added>(i, load(sums + i * apart), residual));
        } else {
            for (int i = 0; i < 4; i++) y[i] = i < count ? nearest(number<added>(i, load(sums + i * apart), residual)) : vi{} - zero;
        }
        return bytes_of(y, zero);
    }
};

}  // namespace torchswat::SWAT_ISA
