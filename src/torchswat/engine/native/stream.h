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
constexpr int64_t cached_bytes = int64_t(8) << 20;

// Whether a result of `entries` in rows of `row` is worth it, and every register's worth of it aligned.
template <class Entry> static inline bool worth_streaming(const Entry* to, int64_t entries, int64_t row) {
    constexpr int64_t size = sizeof(Entry), vector = 4 * W;
    return can_stream && entries * size > cached_bytes && row * size % vector == 0 &&
           reinterpret_cast<uintptr_t>(to) % vector == 0;
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
