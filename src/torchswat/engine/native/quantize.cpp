// Between float32 [c][length] and fours [ceil(c / 4)][length][4]; length is height * width * samples.
//
//     byte = nearest(x / scale) + zero, within 0..255 (a NaN becomes 0)         x = (byte - zero) * scale
//
// Channels that are missing to a multiple of four are bytes of 0. 4 bytes are read and 1 written an entry, or the reverse.
#include "fours.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr float most = 1e9f;  // in magnitude, of what becomes an integer

template <class Function> void each_vector(int64_t channels, int64_t length, int threads, const Function& function) {
    const int64_t groups = (channels + 3) / 4, vectors = (length + W - 1) / W, all = groups * vectors;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int thread = 0; thread < threads; thread++) {
        for (int64_t i = thread * all / threads, end = (thread + 1) * all / threads; i < end; i++) {
            const int64_t group = i / vectors, at = i % vectors * W;
            const int64_t count = channels - group * 4 < 4 ? channels - group * 4 : 4;
            function(group, int(count), at, length - at < W ? int(length - at) : W);
        }
    }
}

}  // namespace

void quantize_fours(const float* x, int64_t channels, int64_t length, float scale, int zero, uint8_t* y, int threads) {
    if (zero < 0 || zero > 255) invalid("A zero point is a byte, 0 to 255.");
    const vf step = splat(scale), high = splat(most), low = splat(-most);
    each_vector(channels, length, threads, [&](int64_t group, int count, int64_t at, int lanes) {
        vi whole[4];
        for (int i = 0; i < 4; i++) {
            if (i >= count) {
                whole[i] = vi{} - zero;
                continue;
            }
            vf value = load_first(x + (group * 4 + i) * length + at, lanes) / step;
            value = value > low ? value : low;  // of a NaN as well
            whole[i] = nearest(value < high ? value : high);
        }
        store_first(reinterpret_cast<float*>(y) + group * length + at, bytes_of(whole, zero), lanes);
    });
}

void dequantize_fours(const uint8_t* x, int64_t channels, int64_t length, float scale, int zero, float* y, int threads) {
    const vf step = splat(scale), from = splat(float(zero));
    each_vector(channels, length, threads, [&](int64_t group, int count, int64_t at, int lanes) {
        const vf fours = load_first(reinterpret_cast<const float*>(x) + group * length + at, lanes);
        for (int i = 0; i < count; i++) {
            store_first(y + (group * 4 + i) * length + at, (byte_of(fours, i) - from) * step, lanes);
        }
    });
}

}  // namespace torchswat::SWAT_ISA
