// How fast this machine multiplies and adds: the two rates that bound every product.
//
//     registers   16 sums, one factor, one constant: nothing but fused multiply-adds. Dense kernels come near it,
//                 since each vector they load serves many filters.
//     first-level cache
//                 each multiply-add has a vector of its own to load, as with sparse weights or activations, where
//                 the next entry is somewhere else.
//
// 2 W operations a multiply-add. The sums end in `sink`, so that nothing is left out.
#include "kernels.h"
#include "vec.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr int sums = registers >= 32 ? 16 : 8;
constexpr int64_t tile_vectors = 512;  // 32 KB of 16 lanes

template <class Factor> void run(int64_t rounds, float* sink, int threads, const Factor& factor) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int thread = 0; thread < threads; ++thread) {
        vf sum[sums];
        for (int i = 0; i < sums; ++i) sum[i] = splat(float(i));
        const vf value = splat(1.0f / 3);  // sums stay finite: factors are below one
        for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
            for (int i = 0; i < sums; ++i) sum[i] = sum[i] * factor(round, i) + value;
        vf total{};
        for (int i = 0; i < sums; ++i) total += sum[i];
        storeu(sink + thread * W, total);
    }
}

}  // namespace

// 2 * W * 16 operations a round and thread (8 where registers are few); sink: threads * W floats.
void peak_registers(int64_t rounds, float* sink, int threads) {
    const vf constant = splat(0.5f);
    run(rounds, sink, threads, [&](int64_t, int) { return constant; });
}

// The same with every factor loaded from `tile`, 512 aligned vectors (below one) that stay in the first-level cache.
void peak_loads(const float* tile, int64_t rounds, float* sink, int threads) {
    run(rounds, sink, threads, [&](int64_t round, int i) {
        const int64_t at = (round * 5 % (tile_vectors / sums)) * sums + i;
        return load(tile + at * W);
    });
}

int64_t peak_operations() { return 2 * W * sums; }

}  // namespace torchswat::SWAT_ISA
