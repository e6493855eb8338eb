// Means, layer norm, softmax and attention of inference, with the axis they run along anywhere in memory.
//
//     X [outer][length][inner]      inner is 1: rows, whose sums end across the lanes; else lanes are neighbours of inner
//
// Products of a session leave rows of features as [feature][row], so lanes are rows of it and no sum crosses them:
//
//     Q, K [feature][token]  ->  S = K^T Q  [key][query]  ->  softmax of its columns  ->  Y = V S  [feature][query]
//
// A block of queries is a few vectors: its part of S stays in a cache, and Y lies as Q does. Both products are one loop
// over panels of registers: 2 operations for each load of a broadcast, which is 24 vectors wide. 4 * queries * keys *
// features operations and queries * keys exponentials a head; S is never in memory as a whole.
#include "buffer.h"
#include "curves.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int64_t few = 1 << 13;                   // entries of a norm or softmax that one thread does alone
constexpr int panel = registers == 32 ? 12 : 4;    // rows of a product in registers, of two vectors each

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

float sum_lanes(vf x) {
    float total = 0;
    for (int lane = 0; lane < W; lane++) total += x[lane];
    return total;
}

// The first `lanes` of x, and `rest` in the others.
vf first_of(vf x, int lanes, float rest) {
    for (int lane = lanes; lane < W; lane++) x[lane] = rest;
    return x;
}

// ---- along rows ----------------------------------------------------------------------------------------------------

// Calls f(vector, lanes, index) for a row of n floats.
template <class F> SWAT_INLINE void for_each(int64_t n, F f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) f(i, W);
    if (i < n) f(i, int(n - i));
}

void normalise_row(const float* x, int64_t n, const float* scale, const float* bias, float epsilon, float* y) {
    vf total{};
    for_each(n, [&](int64_t i, int lanes) { total += load_first(x + i, lanes); });
    const vf mean = splat(sum_lanes(total) / float(n));
    vf squares{};
    for_each(n, [&](int64_t i, int lanes) {
        const vf gap = load_first(x + i, lanes) - mean;
        squares += lanes == W ? gap * gap : first_of(gap * gap, lanes, 0);
    });
    const vf factor = splat(1.0f / __builtin_sqrtf(sum_lanes(squares) / float(n) + epsilon));
    for_each(n, [&](int64_t i, int lanes) {
        vf z = (load_first(x + i, lanes) - mean) * factor;
        if (scale) z *= load_first(scale + i, lanes);
        if (bias) z += load_first(bias + i, lanes);
        store_first(y + i, z, lanes);
    });
}

void softmax_row(const float* x, int64_t n, float* y) {
    constexpr float lowest = -__builtin_inff();
    vf most = splat(0.0f) + lowest;
    for_each(n, [&](int64_t i, int lanes) {
        vf z = load_first(x + i, lanes);
        if (lanes < W) z = first_of(z, lanes, lowest);
        most = z > most ? z : most;
    });
    float largest = most[0];
    for (int lane = 1; lane < W; lane++) largest = most[lane] > largest ? most[lane] : largest;
    vf total{};
    for_each(n, [&](int64_t i, int lanes) {
        vf z = exp_of(load_first(x + i, lanes) - largest);
        if (lanes < W) z = first_of(z, lanes, 0);
        total += z;
        store_first(y + i, z, lanes);
    });
    const vf factor = splat(1.0f / sum_lanes(total));
    for_each(n, [&](int64_t i, int lanes) { store_first(y + i, load_first(y + i, lanes) * factor, lanes); });
}

// ---- across rows ---------------------------------------------------------------------------------------------------

void normalise_lanes(const float* x, int64_t length, int64_t inner, int lanes, const float* scale, const float* bias,
                     float epsilon, float* y) {
    vf total{};
    for (int64_t l = 0; l < length; l++) total += load_first(x + l * inner, lanes);
    const vf share = splat(1.0f / float(length)), mean = total * share;
    vf squares{};
    for (int64_t l = 0; l < length; l++) {
        const vf gap = load_first(x + l * inner, lanes) - mean;
        squares += gap * gap;
    }
    vf factor = squares * share + splat(epsilon);
    for (int lane = 0; lane < W; lane++) factor[lane] = 1.0f / __builtin_sqrtf(factor[lane]);
    for (int64_t l = 0; l < length; l++) {
        vf z = (load_first(x + l * inner, lanes) - mean) * factor;
        if (scale) z *= splat(scale[l]);
        if (bias) z += splat(bias[l]);
        store_first(y + l * inner, z, lanes);
    }
}

void softmax_lanes(const float* x, int64_t length, int64_t inner, int lanes, float* y) {
    vf most = load_first(x, lanes);
    for (int64_t l = 1; l < length; l++) {
        const vf z = load_first(x + l * inner, lanes);
        most = z > most ? z : most;
    }
    vf total{};
    for (int64_t l = 0; l < length; l++) {
        const vf z = exp_of(load_first(x + l * inner, lanes) - most);
        total += z;
        store_first(y + l * inner, z, lanes);
    }
    const vf factor = splat(1.0f) / total;
    for (int64_t l = 0; l < length; l++) store_first(y + l * inner, load_first(y + l * inner, lanes) * factor, lanes);
}

// Calls row(offset) or lanes(offset, lanes) for all of [outer][length][inner].
template <class Row, class Lanes>
void for_all(int64_t outer, int64_t length, int64_t inner, int threads, Row row, Lanes across) {
    const bool many = threads > 1 && outer * length * inner > few;
    if (inner == 1) {
#pragma omp parallel for num_threads(threads) schedule(static) if (many)
        for (int64_t o = 0; o < outer; o++) row(o * length);
        return;
    }
    const int64_t groups = (inner + W - 1) / W;
#pragma omp parallel for num_threads(threads) schedule(static) if (many)
    for (int64_t i = 0; i < outer * groups; i++) {
        const int64_t at = i % groups * W;
        across(i / groups * length * inner + at, int(smaller(W, inner - at)));
    }
}

// ---- attention -----------------------------------------------------------------------------------------------------

// J rows of a product with V vectors: sums[j] of a[t * step + j * row] * b[t], t from 0 to `inner`.
template <int J, int V> struct Panel {
    vf at[J][V];

    SWAT_INLINE void multiply(const float* a, int64_t step, int64_t row, const float* b, int64_t inner) {
#pragma GCC unroll 32
        for (int i = 0; i < J * V; i++) at[i / V][i % V] = vf{};
        for (int64_t t = 0; t < inner; t++, a += step, b += V * W) {
            vf columns[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) columns[v] = load(b + v * W);
#pragma GCC unroll 12
            for (int j = 0; j < J; j++) {
                const vf factor = splat(a[j * row]);
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) at[j][v] += factor * columns[v];
            }
        }
    }
};

template <int J, int V>
int64_t scores(const float* keys, int64_t feature, int64_t from, int64_t to, const float* queries, int64_t size,
               float* s) {
    for (; from + J <= to; from += J) {
        Panel<J, V> sums;
        sums.multiply(keys + from, feature, 1, queries, size);
#pragma GCC unroll 32
        for (int i = 0; i < J * V; i++) store(s + from * V * W + i * W, sums.at[i / V][i % V]);
    }
    return from;
}

template <int J, int V>
int64_t mix(const float* values, int64_t feature, int64_t from, int64_t to, const float* s, int64_t keys,
            const vf* factor, int lanes, float* y, int64_t y_feature) {
    for (; from + J <= to; from += J) {
        Panel<J, V> sums;
        sums.multiply(values + from * feature, 1, feature, s, keys);
#pragma GCC unroll 32
        for (int i = 0; i < J * V; i++) {
            const int here = int(smaller(W, lanes - i % V * W));
            store_first(y + (from + i / V) * y_feature + i % V * W, sums.at[i / V][i % V] * factor[i % V], here);
        }
    }
    return from;
}

struct Head {  // of one image: where its queries, keys, values and results lie, and the distance between features
    const float *q, *k, *v;
    float* y;
    const int64_t* strides;
    int64_t keys, size, value_size;
    float scale;
};

// `lanes` queries from `at` on, in V vectors.
template <int V> void attend(const Head& head, int64_t at, int lanes, float* queries, float* s) {
    const int64_t q_feature = head.strides[2], k_feature = head.strides[5], v_feature = head.strides[8];
    const vf scale = splat(head.scale);
    for (int64_t d = 0; d < head.size; d++)
        for (int v = 0; v < V; v++) {
            const float* from = head.q + d * q_feature + at + v * W;
            store(queries + (d * V + v) * W, load_first(from, lanes - v * W) * scale);
        }
    int64_t done = scores<panel, V>(head.k, k_feature, 0, head.keys, queries, head.size, s);
    done = scores<4, V>(head.k, k_feature, done, head.keys, queries, head.size, s);
    scores<1, V>(head.k, k_feature, done, head.keys, queries, head.size, s);

    vf most[V], factor[V];
    for (int v = 0; v < V; v++) most[v] = load(s + v * W), factor[v] = vf{};
    for (int64_t key = 1; key < head.keys; key++)
        for (int v = 0; v < V; v++) {
            const vf z = load(s + (key * V + v) * W);
            most[v] = z > most[v] ? z : most[v];
        }
    for (int64_t key = 0; key < head.keys; key++)
        for (int v = 0; v < V; v++) {
            float* place = s + (key * V + v) * W;
            const vf z = exp_of(load(place) - most[v]);
            factor[v] += z;
            store(place, z);
        }
    for (int v = 0; v < V; v++) factor[v] = splat(1.0f) / factor[v];

    float* y = head.y + at;
    const int64_t y_feature = head.strides[11];
    done = mix<panel, V>(head.v, v_feature, 0, head.value_size, s, head.keys, factor, lanes, y, y_feature);
    done = mix<4, V>(head.v, v_feature, done, head.value_size, s, head.keys, factor, lanes, y, y_feature);
    mix<1, V>(head.v, v_feature, done, head.value_size, s, head.keys, factor, lanes, y, y_feature);
}

}  // namespace

void layer_norm(const float* x, int64_t outer, int64_t length, int64_t inner, const float* scale, const float* bias,
                float epsilon, float* y, int threads) {
    for_all(
        outer, length, inner, threads,
        [&](int64_t at) { normalise_row(x + at, length, scale, bias, epsilon, y + at); },
        [&](int64_t at, int lanes) { normalise_lanes(x + at, length, inner, lanes, scale, bias, epsilon, y + at); });
}

// Y [outer][inner]
void mean_along(const float* x, int64_t outer, int64_t length, int64_t inner, float* y, int threads) {
    const float share = 1.0f / float(length);
    for_all(
        outer, length, inner, threads,
        [&](int64_t at) {
            vf sums[4] = {};  // chains of additions that hide the latency of each other
            int64_t i = 0;
            for (; i + 4 * W <= length; i += 4 * W)
                for (int chain = 0; chain < 4; chain++) sums[chain] += loadu(x + at + i + chain * W);
            for (; i < length; i += W) sums[0] += load_first(x + at + i, int(smaller(W, length - i)));
            y[at / length] = sum_lanes(sums[0] + sums[1] + (sums[2] + sums[3])) * share;
        },
        [&](int64_t at, int lanes) {
            vf total{};
            for (int64_t l = 0; l < length; l++) total += load_first(x + at + l * inner, lanes);
            store_first(y + at / (length * inner) * inner + at % (length * inner), total * share, lanes);
        });
}

void softmax(const float* x, int64_t outer, int64_t length, int64_t inner, float* y, int threads) {
    for_all(
        outer, length, inner, threads, [&](int64_t at) { softmax_row(x + at, length, y + at); },
        [&](int64_t at, int lanes) { softmax_lanes(x + at, length, inner, lanes, y + at); });
}

// `strides`: from image to image, from head to head and from feature to feature, of q, k, v and y; tokens are neighbours.
void attention(const float* q, const float* k, const float* v, float* y, const int64_t* strides, int64_t images,
               int64_t heads, int64_t queries, int64_t keys, int64_t size, int64_t value_size, float scale,
               int threads) {
    const int64_t blocks = (queries + 2 * W - 1) / (2 * W), all = images * heads * blocks;
#pragma omp parallel num_threads(threads) if (threads > 1 && all > 1)
    {
        Buffer<float> packed{size_t(size) * 2 * W}, s{size_t(keys) * 2 * W};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all; i++) {
            const int64_t image = i / blocks / heads, h = i / blocks % heads, at = i % blocks * 2 * W;
            const auto place = [&](int which) { return image * strides[3 * which] + h * strides[3 * which + 1]; };
            const Head head{q + place(0), k + place(1), v + place(2), y + place(3), strides, keys, size, value_size, scale};
            const int lanes = int(smaller(2 * W, queries - at));
            if (lanes > W) {
                attend<2>(head, at, lanes, packed.data, s.data);
            } else {
                attend<1>(head, at, lanes, packed.data, s.data);
            }
        }
    }
}

}  // namespace torchswat::SWAT_ISA
