// What inference does entry by entry, in one pass: activations, and sums and products of two arrays.
//
//     activate    4 bytes read, 4 written an entry; 10 to 30 operations where the curve is an exp, erf or tanh
//     combine     Y [outer][middle][inner] = A [outer][middle][inner] op B [outer][1][inner]: 8 or 12 bytes an entry
//
// B is of the shape of A (middle is 1), a number a channel (inner is 1) or of the last axes (outer is 1).
#include "curves.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t stretch = 1 << 12;     // entries that a thread takes at a time
constexpr int64_t few = int64_t(1) << 14;  // entries that one thread is done with before another has woken

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <int kind> void apply(const float* x, int64_t n, float low, float high, float* y) {
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {  // two chains of operations hide the latency of each other
        const vf a = curve_of<kind>(loadu(x + i), low, high), b = curve_of<kind>(loadu(x + i + W), low, high);
        storeu(y + i, a);
        storeu(y + i + W, b);
    }
    for (; i < n; i += W) {
        const int lanes = int(smaller(W, n - i));
        store_first(y + i, curve_of<kind>(load_first(x + i, lanes), low, high), lanes);
    }
}

struct Sum {
    static vf of(vf a, vf b) { return a + b; }
};
struct Product {
    static vf of(vf a, vf b) { return a * b; }
};
struct Difference {
    static vf of(vf a, vf b) { return a - b; }
};
struct Quotient {
    static vf of(vf a, vf b) { return a / b; }
};

// y = a op b over n entries; `step` is 0 where b is one number.
template <class Op> void combine_row(const float* a, const float* b, int step, int64_t n, float* y) {
    if (!step) {
        const vf same = splat(*b);
        int64_t i = 0;
        for (; i + W <= n; i += W) storeu(y + i, Op::of(loadu(a + i), same));
        if (i < n) store_first(y + i, Op::of(load_first(a + i, int(n - i)), same), int(n - i));
        return;
    }
    int64_t i = 0;
    for (; i + W <= n; i += W) storeu(y + i, Op::of(loadu(a + i), loadu(b + i)));
    if (i < n) {
        const int lanes = int(n - i);
        store_first(y + i, Op::of(load_first(a + i, lanes), load_first(b + i, lanes)), lanes);
    }
}

template <class Op>
void combine_all(const float* a, const float* b, int64_t outer, int64_t middle, int64_t inner, float* y, int threads) {
    const bool many = threads > 1 && outer * middle * inner > few;
    if (inner == 1) {
#pragma omp parallel for num_threads(threads) schedule(static) if (many)
        for (int64_t o = 0; o < outer; o++) combine_row<Op>(a + o * middle, b + o, 0, middle, y + o * middle);
    } else if (outer * middle == 1) {
#pragma omp parallel for num_threads(threads) schedule(static) if (many)
        for (int64_t i = 0; i < inner; i += stretch) {
            combine_row<Op>(a + i, b + i, 1, smaller(stretch, inner - i), y + i);
        }
    } else {
#pragma omp parallel for num_threads(threads) schedule(static) if (many)
        for (int64_t row = 0; row < outer * middle; row++) {
            combine_row<Op>(a + row * inner, b + row / middle * inner, 1, inner, y + row * inner);
        }
    }
}

}  // namespace

void apply_activation(const float* x, int64_t n, Activation after, float* y) {
    switch (after.kind) {
#define SWAT_CURVE(name) \
    case Activation::name: return apply<Activation::name>(x, n, after.low, after.high, y);
        SWAT_CURVE(none)
        SWAT_CURVE(clip)
        SWAT_CURVE(leaky_relu)
        SWAT_CURVE(sigmoid)
        SWAT_CURVE(swish)
        SWAT_CURVE(hard_sigmoid)
        SWAT_CURVE(hard_swish)
        SWAT_CURVE(tanh)
        SWAT_CURVE(gelu)
        SWAT_CURVE(gelu_tanh)
        SWAT_CURVE(exp)
        SWAT_CURVE(erf)
#undef SWAT_CURVE
        default: invalid("There is no activation of that number.");
    }
}

void activate(const float* x, int64_t n, Activation after, float* y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && n > few)
    for (int64_t i = 0; i < n; i += stretch) apply_activation(x + i, smaller(stretch, n - i), after, y + i);
}

void combine(int operation, const float* a, const float* b, int64_t outer, int64_t middle, int64_t inner, float* y,
             int threads) {
    switch (operation) {
        case 0: return combine_all<Sum>(a, b, outer, middle, inner, y, threads);
        case 1: return combine_all<Product>(a, b, outer, middle, inner, y, threads);
        case 2: return combine_all<Difference>(a, b, outer, middle, inner, y, threads);
        case 3: return combine_all<Quotient>(a, b, outer, middle, inner, y, threads);
        default: invalid("There is no operation of that number: 0 adds, 1 multiplies, 2 subtracts, 3 divides.");
    }
}

}  // namespace torchswat::SWAT_ISA
