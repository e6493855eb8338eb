// The activations of inference on vectors, and the Activation that a kernel takes (kernels.h).
//
// exp   2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (Cephes expf); to infinity and to subnormal numbers
// erf   x P(x^2) / Q(x^2) on [-4, 4]; tanh likewise on [-8, 8] (the rational functions of Eigen)
// All are within a few units of the last place, of erf and tanh absolutely and for small x too. NaN stays NaN, and
// infinities give what numpy's formulas give: -inf * 0 is NaN in x * sigmoid(x).
#pragma once
#include "kernels.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {

typedef int32_t vint __attribute__((vector_size(4 * W)));

static inline vf between(vf x, float low, float high) {  // a NaN of x stays
    const vf raised = x < splat(low) ? splat(low) : x;
    return raised > splat(high) ? splat(high) : raised;
}

// 2^n of whole numbers from -126 to 127.
static inline vf power_of_two(vint n) { return reinterpret_cast<vf>((n + 127) << 23); }

static inline vf exp_of(vf x) {
    x = between(x, -104.0f, 89.0f);
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to whole numbers
    const vf shifted = x * splat(1.44269504088896341f) + magic;
    const vf n = shifted - magic;
    const vf r = x - n * splat(0.693359375f) - n * splat(-2.12194440e-4f);
    vf p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
    // Of a NaN the whole number is arbitrary, so it is cut: what is multiplied is NaN anyway.
    vint whole = reinterpret_cast<vint>(shifted) - 0x4b400000;
    whole = whole < -160 ? vint{} - 160 : whole;
    whole = whole > 160 ? vint{} + 160 : whole;
    const vint half = whole >> 1;
    return p * power_of_two(half) * power_of_two(whole - half);
}

static inline vf erf_of(vf x) {
    x = between(x, -4.0f, 4.0f);
    const vf s = x * x;
    vf p = splat(-2.72614225801306e-10f);
    p = p * s + splat(2.77068142495902e-08f);
    p = p * s + splat(-2.10102402082508e-06f);
    p = p * s + splat(-5.69250639462346e-05f);
    p = p * s + splat(-7.34990630326855e-04f);
    p = p * s + splat(-2.95459980854025e-03f);
    p = p * s + splat(-1.60960333262415e-02f);
    vf q = splat(-1.45660718464996e-05f);
    q = q * s + splat(-2.13374055278905e-04f);
    q = q * s + splat(-1.68282697438203e-03f);
    q = q * s + splat(-7.37332916720468e-03f);
    q = q * s + splat(-1.42647390514189e-02f);
    const vf one = splat(1.0f), y = x * p / q;  // what GELU adds to 1 must be -1 far below
    return x > splat(3.9f) ? one : (x < splat(-3.9f) ? -one : y);
}

static inline vf tanh_of(vf x) {
    x = between(x, -8.0f, 8.0f);
    const vf s = x * x;
    vf p = splat(-2.76076847742355e-16f);
    p = p * s + splat(2.00018790482477e-13f);
    p = p * s + splat(-8.60467152213735e-11f);
    p = p * s + splat(5.12229709037114e-08f);
    p = p * s + splat(1.48572235717979e-05f);
    p = p * s + splat(6.37261928875436e-04f);
    p = p * s + splat(4.89352455891786e-03f);
    vf q = splat(1.19825839466702e-06f);
    q = q * s + splat(1.18534705686654e-04f);
    q = q * s + splat(2.26843463243900e-03f);
    q = q * s + splat(4.89352518554385e-03f);
    const vf one = splat(1.0f), y = x * p / q;
    return x > splat(7.9f) ? one : (x < splat(-7.9f) ? -one : y);
}

static inline vf sigmoid_of(vf x) { return splat(1.0f) / (splat(1.0f) + exp_of(-x)); }

template <int kind> static inline vf curve_of(vf x, float low, float high) {
    const vf one = splat(1.0f), half = splat(0.5f);
    if constexpr (kind == Activation::clip) return between(x, low, high);
    if constexpr (kind == Activation::leaky_relu) return x >= vf{} ? x : x * splat(low);
    if constexpr (kind == Activation::sigmoid) return sigmoid_of(x);
    if constexpr (kind == Activation::swish) return x * sigmoid_of(x);
    if constexpr (kind == Activation::hard_sigmoid) return between(x * splat(low) + splat(high), 0.0f, 1.0f);
    if constexpr (kind == Activation::hard_swish) return x * between(x * splat(1.0f / 6) + half, 0.0f, 1.0f);
    if constexpr (kind == Activation::tanh) return tanh_of(x);
    if constexpr (kind == Activation::gelu) return (erf_of(x * splat(0.70710678118654752f)) + one) * x * half;
    if constexpr (kind == Activation::gelu_tanh) {
        const vf inner = splat(0.7978845608f) * (x + splat(0.044715f) * x * x * x);
        return (tanh_of(inner) + one) * x * half;
    }
    if constexpr (kind == Activation::exp) return exp_of(x);
    if constexpr (kind == Activation::erf) return erf_of(x);
    return x;
}

// y[0..n) = the activation of x, which may be y (elementwise.cpp).
void apply_activation(const float* x, int64_t n, Activation after, float* y);

}  // namespace torchswat::SWAT_ISA
