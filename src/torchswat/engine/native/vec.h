// One vector of floats, W lanes wide, whatever the instruction set this file is compiled for.
//
// Kernel files are compiled once per instruction set with SWAT_ISA = plain, avx2 or avx512, and everything they
// define lives in the namespace of that name. Nothing from the C++ library that is a template or inline may be
// emitted by them (std::vector, std::sort, ...): the linker would keep one copy for all, perhaps the AVX-512 one.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#ifndef SWAT_ISA
#error "compile kernel files with -DSWAT_ISA=plain, avx2 or avx512"
#endif

#define SWAT_INLINE inline __attribute__((always_inline))

namespace torchswat::SWAT_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
constexpr int registers = 32;
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int registers = 16;
#elif defined(__aarch64__)
constexpr int W = 4;
constexpr int registers = 32;
#else
constexpr int W = 4;
constexpr int registers = 16;
#endif

typedef float vf __attribute__((vector_size(4 * W), may_alias));                 // in registers, or aligned
typedef float vf_any __attribute__((vector_size(4 * W), aligned(4), may_alias)); // in memory at any address

static inline vf splat(float value) { return value - vf{}; }  // minus zero is exact: one broadcast
static inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
static inline vf loadu(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
static inline void store(float* p, vf x) { *reinterpret_cast<vf*>(p) = x; }
static inline void storeu(float* p, vf x) { *reinterpret_cast<vf_any*>(p) = x; }

// Keeps a vector that was loaded in its register, where the compiler would rather load it again for each use.
static inline void in_register(vf& x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#else
    (void)x;
#endif
}

// The first `lanes` (1..W) floats; the lanes beyond read as zero and are left alone in memory.
static inline vf load_first(const float* p, int lanes) {
    if (lanes >= W) return loadu(p);
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(__mmask16((1u << lanes) - 1), p));
#else
    vf x{};
    if (lanes > 0) std::memcpy(&x, p, sizeof(float) * size_t(lanes));  // of none, the address may be null
    return x;
#endif
}
static inline void store_first(float* p, vf x, int lanes) {
    if (lanes >= W) return storeu(p, x);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, __mmask16((1u << lanes) - 1), reinterpret_cast<__m512>(x));
#else
    if (lanes > 0) std::memcpy(p, &x, sizeof(float) * size_t(lanes));
#endif
}

// x * scale + shift, rounded the same wherever it is computed: what is recomputed must be what it was. One rounding where
// the set has fused multiply-add; else two, and CMakeLists.txt forbids the compiler to contract them in some places.
static inline vf affine_at(vf x, vf scale, vf shift) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_fmadd_ps(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(scale),
                                                reinterpret_cast<__m512>(shift)));
#elif defined(__AVX2__)
    return reinterpret_cast<vf>(_mm256_fmadd_ps(reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(scale),
                                                reinterpret_cast<__m256>(shift)));
#elif defined(__aarch64__)
    return reinterpret_cast<vf>(vfmaq_f32(reinterpret_cast<float32x4_t>(shift), reinterpret_cast<float32x4_t>(x),
                                          reinterpret_cast<float32x4_t>(scale)));
#else
    return x * scale + shift;
#endif
}

}  // namespace torchswat::SWAT_ISA
