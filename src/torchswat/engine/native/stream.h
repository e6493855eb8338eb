// Stores past the cache, for results larger than any cache that the next kernel could find them in.
//
// An ordinary store first reads the line it overwrites: a third of the traffic of a copy, and most of the time of a
// transposition, whose lines are far apart.
#pragma once
#include "vec.h"

namespace torchswat::SWAT_ISA {

#if defined(__AVX2__)
constexpr bool can_stream = true;
#else
constexpr bool can_stream = false;
#endif
constexpr int64_t cached_floats = int64_t(1) << 21;  // 8 MiB

// Whether a result of `floats` in rows of `row` is worth it, and every vector of it aligned.
static inline bool worth_streaming(const float* to, int64_t floats, int64_t row) {
    return can_stream && floats > cached_floats && row % W == 0 && reinterpret_cast<uintptr_t>(to) % (4 * W) == 0;
}

template <bool streaming> static inline void put(float* to, vf x) {
#if defined(__AVX512F__)
    if constexpr (streaming) return _mm512_stream_ps(to, reinterpret_cast<__m512>(x));
#elif defined(__AVX2__)
    if constexpr (streaming) return _mm256_stream_ps(to, reinterpret_cast<__m256>(x));
#endif
    storeu(to, x);
}

// After the last streamed store of a thread: other threads see them from here on.
template <bool streaming> static inline void settle() {
#if defined(__AVX2__)
    if constexpr (streaming) _mm_sfence();
#endif
}

}  // namespace torchswat::SWAT_ISA
