// Every kernel of the engine, in one list.
//
// A kernel file defines plain functions in the namespace of its instruction set; this list declares them there,
// makes the struct of pointers that dispatch.cpp chooses from, and names what module.cpp binds for Python.
// A kernel that is not in the list does not exist. Python passes pointers as integers and all else as it is.
#pragma once
#include <cstdint>

#include "shapes.h"

namespace torchswat {


// What a selection found. Entries are kept where |value| > threshold, and as many of those equal to it as are
// missing to k. A NaN counts as larger than anything; `not_a_number` says that one was met.
struct Threshold {
    float value;
    int64_t greater, equal;
    bool not_a_number;
};

// Where the packed weights of a product go (sparse_weights.h); all null where it is not wanted.
struct PackedWeights {
    int32_t* starts;
    float* values;
    uint16_t* offsets;
};

// How many weights or activations were packed, and whether a NaN was met.
struct Packed {
    int64_t count;
    bool not_a_number;
};

// The selection of one operand: entries of at least `limit` are kept; of those equal to it the first `ties` (all where
// that is negative); `count` of them (unknown where negative).
struct Selected {
    float limit;
    int64_t ties, count;
    bool not_a_number;
};

// What the selections of a pass with dense products have found; `not_a_number` is 1 for the weight, 2 for the input.
struct DensePass {
    float weight_limit, activation_limit;
    int64_t weight_ties, activation_count;
    int not_a_number;
};

// How a weight [groups][filters][channels][area] is divided into blocks; they do not cross groups (blocks.cpp).
struct Blocks {
    int64_t groups, filters, channels, area;
    int block_filters, block_channels;
};

// What inference does to each result (curves.h): clip cuts to [low, high], which ReLU and ReLU6 are; leaky_relu multiplies
// negative numbers with low, hard_sigmoid cuts low * x + high to [0, 1].
struct Activation {
    enum Kind { none, clip, leaky_relu, sigmoid, swish, hard_sigmoid, hard_swish, tanh, gelu, gelu_tanh, exp, erf };
    int kind = none;
    float low = 0, high = 0;
};

// How the operands of a pass are selected, and when.
struct Search {
    double sparsity;
    int period, warmup;
    bool exact, sampled, advances, last, remembers;
};

// What follows the sums of a product of bytes (fours.h): an int32 that each filter's sum begins with, and two numbers by
// which it ends; the zero point of the result, or none where that is float32.
struct QuantizedEnd {
    const int32_t* start;
    const float *factor, *shift;
    float residual_factor;
    int zero;
    bool is_float;
};

// Thrown by kernels as ValueError (defined once, outside of the instruction sets' namespaces).
[[noreturn]] void invalid(const char* message);

}  // namespace torchswat

// X(result, name, (arguments))
#define SWAT_SELECTION(X)                                                                                        \
    X(Threshold, kth_largest, (const float* values, int64_t n, int64_t k, int threads))                          \
    X(Threshold, kth_largest_near, (const float* values, int64_t n, int64_t k, float last, int threads))         \
    X(bool, kth_largest_lanes,                                                                                   \
      (const float* values, int64_t groups, int64_t length, int64_t lanes, int64_t k, float* thresholds,         \
       int64_t* greater, int64_t* equal, int threads))                                                           \
    X(float, sampled_threshold,                                                                                  \
      (const float* values, int64_t n, int64_t k, int64_t samples, uint64_t seed, int threads))                  \
    X(Threshold, count_kept, (const float* values, int64_t n, float threshold, int threads))                     \
    X(void, keep_large, (const float* x, int64_t n, float threshold, float* y, int threads))                     \
    X(void, keep_marked, (const float* x, const uint8_t* mask, int64_t n, float* y, int threads))                \
    X(void, magnitude_mask,                                                                                      \
      (const float* values, int64_t length, int64_t lanes, float threshold, int64_t ties, uint8_t* mask,         \
       int threads))                                                                                             \
    X(void, magnitude_mask_lanes,                                                                                \
      (const float* values, int64_t groups, int64_t length, int64_t lanes, const float* thresholds,              \
       const int64_t* equal, const int64_t* ties, uint8_t* mask, int threads))                                   \
    X(Selected, select_blocks,                                                                                   \
      (double* memory, const float* weights, const Blocks& blocks, int64_t k, double sparsity, bool due,         \
       bool exact, bool frozen, uint8_t* mask, int threads))

// ---- what stands between the products, for entries of float or bf16; `_` is what the name gets for them ----------------
// Each is a template of its entries, which its file instantiates by this list.

#define SWAT_LAYOUT(X, entry, _)                                                                                 \
    X(void, nchw_to_chwn##_,                                                                                     \
      (const entry* nchw, int64_t stride, entry* chwn, int64_t n, int64_t c, int64_t h, int64_t w,               \
       int threads))                                                                                             \
    X(void, chwn_to_nchw##_,                                                                                     \
      (const entry* chwn, entry* nchw, int64_t n, int64_t c, int64_t h, int64_t w, int threads))                 \
    X(void, channels_last_to_chwn##_,                                                                            \
      (const entry* nhwc, int64_t stride, entry* chwn, int64_t n, int64_t c, int64_t h, int64_t w,               \
       int threads))                                                                                             \
    X(void, chwn_to_channels_last##_,                                                                            \
      (const entry* chwn, entry* nhwc, int64_t n, int64_t c, int64_t h, int64_t w, int threads))

#define SWAT_NORM(X, entry, _)                                                                                   \
    X(void, batch_norm_forward##_,                                                                               \
      (const entry* x, int64_t channels, int64_t length, const float* weight, const float* bias, double epsilon, \
       const entry* residual, bool relu, entry* y, uint64_t* positive, float* mean, float* inverse_deviation,    \
       float* scale, float* shift, float* running_mean, float* running_variance, double momentum,                \
       int kept_bytes, void* kept, float* step, float* low, int threads))                                        \
    X(void, batch_norm_backward##_,                                                                              \
      (const entry* grad_y, const uint64_t* positive, const float* scale, const float* shift, int kept_bytes,    \
       const void* kept, const float* step, const float* low, int64_t channels, int64_t length,                  \
       const float* weight, const float* mean, const float* inverse_deviation, entry* grad_x,                    \
       entry* grad_residual, float* grad_weight, float* grad_bias, int threads))                                 \
    X(void, affine_forward##_,                                                                                   \
      (const entry* x, int64_t channels, int64_t length, const float* scale, const float* shift,                 \
       const entry* residual, bool relu, entry* y, uint64_t* positive, int threads))                             \
    X(void, relu_forward##_, (const entry* x, int64_t n, entry* y, uint64_t* positive, int threads))             \
    X(void, relu_backward##_,                                                                                    \
      (const entry* grad_y, const uint64_t* positive, int64_t n, entry* grad_x, int threads))

#define SWAT_POOL(X, entry, _)                                                                                   \
    X(void, max_pool_forward##_,                                                                                 \
      (const entry* x, int64_t channels, int h, int w, int64_t n, int kernel, int stride, int padding, entry* y, \
       uint8_t* winner, int threads))                                                                            \
    X(void, max_pool_backward##_,                                                                                \
      (const entry* grad_y, const uint8_t* winner, int64_t channels, int h, int w, int64_t n, int kernel,        \
       int stride, int padding, entry* grad_x, int threads))                                                     \
    X(void, average_forward##_,                                                                                  \
      (const entry* x, int64_t channels, int h, int w, int64_t n, int kernel_h, int kernel_w, entry* y,          \
       int threads))                                                                                             \
    X(void, average_backward##_,                                                                                 \
      (const entry* grad_y, int64_t channels, int h, int w, int64_t n, int kernel_h, int kernel_w,               \
       entry* grad_x, int threads))

#define SWAT_ENTRYWISE(X, entry, _) SWAT_LAYOUT(X, entry, _) SWAT_NORM(X, entry, _) SWAT_POOL(X, entry, _)

#define SWAT_SPARSE_WEIGHTS(X)                                                                                   \
    X(int64_t, weight_starts, (ConvShape shape, int product))                                                    \
    X(int64_t, weight_capacity, (ConvShape shape, int product))                                                  \
    X(Packed, pack_weights,                                                                                      \
      (ConvShape shape, const float* weights, const uint8_t* mask, float threshold, PackedWeights forward,       \
       PackedWeights grad_input, uint16_t* bits, int threads))                                                   \
    X(int64_t, conv_workspace, (ConvShape shape, int threads))                                                   \
    X(void, conv_forward,                                                                                        \
      (ConvShape shape, const float* x, const int32_t* starts, const float* values, const uint16_t* offsets,     \
       const float* bias, float* y, float* workspace, int threads))                                              \
    X(void, conv_grad_input,                                                                                     \
      (ConvShape shape, const float* grad_y, const int32_t* starts, const float* values, const uint16_t* offsets, \
       float* grad_x, float* workspace, int threads))

#define SWAT_LAYER(X)                                                                                            \
    X(Selected, select_operand,                                                                                  \
      (double* memory, const float* values, int64_t n, int64_t k, double sparsity, bool due, bool exact,         \
       bool sampled, bool frozen, int threads))                                                                  \
    X(Threshold, count_kept_bf16, (const bf16* values, int64_t n, float limit, int threads))                     \
    X(Selected, select_bf16,                                                                                     \
      (double* memory, const bf16* values, int64_t n, int64_t k, double sparsity, bool due, bool frozen,         \
       int threads))                                                                                             \
    X(Packed, sparse_forward,                                                                                    \
      (const ConvShape& shape, const float* x, const float* weights, const uint8_t* mask, float limit,           \
       const float* bias, float* y, int threads))                                                                \
    X(void, sparse_grad_input,                                                                                   \
      (const ConvShape& shape, const float* grad_y, const float* weights, const uint8_t* mask, float limit,      \
       float* grad_x, int threads))                                                                              \
    X(Packed, sparse_forward_pairs,                                                                              \
      (const ConvShape& shape, const bf16* x, const float* weights, const uint8_t* mask, float limit,            \
       const float* bias, bf16* y, int threads))                                                                 \
    X(void, sparse_grad_input_pairs,                                                                             \
      (const ConvShape& shape, const bf16* grad_y, const float* weights, const uint8_t* mask, float limit,       \
       bf16* grad_x, int threads))                                                                               \
    X(DensePass, dense_forward,                                                                                  \
      (const int64_t* state, int64_t* to, const Search& search, const float* weights, int64_t n, int64_t k,      \
       float* selected, const float* x, int64_t entries, int64_t kept, uint8_t* saved, int64_t room,             \
       int threads))                                                                                             \
    X(void, dense_backward,                                                                                      \
      (const float* weights, int64_t n, float limit, int64_t ties, float* selected, const uint8_t* saved,        \
       int64_t entries, float* x, int threads))                                                                  \
    X(void, channel_sums, (const float* x, int64_t channels, int64_t length, float* sums, int threads))          \
    X(void, channel_sums_bf16, (const bf16* x, int64_t channels, int64_t length, float* sums, int threads))

#define SWAT_DEPTHWISE(X)                                                                                        \
    X(void, depthwise_forward,                                                                                   \
      (const ConvShape& shape, const float* x, const float* weights, const float* bias, float* y, int threads))  \
    X(void, depthwise_grad_input,                                                                                \
      (const ConvShape& shape, const float* grad_y, const float* weights, float* grad_x, int threads))           \
    X(void, depthwise_grad_weight,                                                                               \
      (const ConvShape& shape, const float* x, const float* grad_y, float* grad_weight, int threads))             \
    X(void, depthwise_forward_bf16,                                                                              \
      (const ConvShape& shape, const bf16* x, const float* weights, const float* bias, bf16* y, int threads))    \
    X(void, depthwise_grad_input_bf16,                                                                           \
      (const ConvShape& shape, const bf16* grad_y, const float* weights, bf16* grad_x, int threads))             \
    X(void, depthwise_grad_weight_bf16,                                                                          \
      (const ConvShape& shape, const bf16* x, const bf16* grad_y, float* grad_weight, int threads))

#define SWAT_INFERENCE(X)                                                                                        \
    X(void, conv_forward_fused,                                                                                  \
      (ConvShape shape, const float* x, const int32_t* starts, const float* values, const uint16_t* offsets,     \
       const float* bias, const float* residual, Activation after, float* y, float* workspace, int threads))     \
    X(void, rows_tiling, (ConvShape shape, int32_t* tiling))                                                     \
    X(int64_t, rows_workspace, (ConvShape shape, int threads))                                                   \
    X(void, conv_rows,                                                                                           \
      (ConvShape shape, const float* x, const int32_t* starts, const float* values, const uint16_t* offsets,     \
       const float* bias, const float* residual, Activation after, float* y, float* workspace, int threads))     \
    X(void, depthwise_rows,                                                                                      \
      (ConvShape shape, const float* x, const float* weights, const float* bias, Activation after, float* y,     \
       int threads))                                                                                             \
    X(void, pool_rows,                                                                                           \
      (const float* x, int64_t channels, int h, int w, int n, int kernel, int stride, int padding, int rows,     \
       int columns, bool average, float* y, int threads))                                                        \
    X(void, spread,                                                                                              \
      (const float* x, int64_t channels, int64_t h, int64_t w, int64_t n, int r, int s, float* y, int threads))  \
    X(void, activate, (const float* x, int64_t n, Activation after, float* y, int threads))                      \
    X(void, combine,                                                                                             \
      (int operation, const float* a, const float* b, int64_t outer, int64_t middle, int64_t inner, float* y,    \
       int threads))                                                                                             \
    X(void, layer_norm,                                                                                          \
      (const float* x, int64_t outer, int64_t length, int64_t inner, const float* scale, const float* bias,      \
       float epsilon, float* y, int threads))                                                                    \
    X(void, mean_along,                                                                                          \
      (const float* x, int64_t outer, int64_t length, int64_t inner, float* y, int threads))                     \
    X(void, softmax, (const float* x, int64_t outer, int64_t length, int64_t inner, float* y, int threads))      \
    X(void, attention,                                                                                           \
      (const float* q, const float* k, const float* v, float* y, const int64_t* strides, int64_t images,         \
       int64_t heads, int64_t queries, int64_t keys, int64_t size, int64_t value_size, float scale,              \
       int threads))

#define SWAT_FOURS(X)                                                                                            \
    X(void, pack_fours, (const ConvShape& shape, const float* weights, PackedWeights to, int threads))           \
    X(void, conv_fours,                                                                                          \
      (const ConvShape& shape, const uint8_t* x, const int32_t* starts, const float* values,                     \
       const uint16_t* offsets, const QuantizedEnd& end, const uint8_t* residual, bool relu, void* y,            \
       float* workspace, int threads))                                                                           \
    X(void, rows_fours,                                                                                          \
      (const ConvShape& shape, const uint8_t* x, const int32_t* starts, const float* values,                     \
       const uint16_t* offsets, const QuantizedEnd& end, const uint8_t* residual, bool relu, void* y,            \
       float* workspace, int threads))                                                                           \
    X(void, max_pool_fours,                                                                                      \
      (const uint8_t* x, int64_t groups, int h, int w, int64_t n, int kernel, int stride, int padding, int rows,  \
       int columns, uint8_t* y, int threads))                                                                    \
    X(void, quantize_fours,                                                                                      \
      (const float* x, int64_t channels, int64_t length, float scale, int zero, uint8_t* y, int threads))        \
    X(void, dequantize_fours,                                                                                    \
      (const uint8_t* x, int64_t channels, int64_t length, float scale, int zero, float* y, int threads))

#define SWAT_SPARSE_ACTIVATIONS(X)                                                                               \
    X(Packed, compress_count,                                                                                    \
      (const float* x, const float* scale, const float* shift, const uint8_t* mask, float threshold, int64_t c,  \
       int64_t area, int64_t n, int32_t* counts, int64_t* starts, int threads))                                  \
    X(void, compress_fill,                                                                                       \
      (const float* x, const float* scale, const float* shift, const uint8_t* mask, float threshold, int64_t c,  \
       int64_t area, int64_t n, const int32_t* counts, const int64_t* starts, float* values, uint16_t* bits,     \
       int threads))                                                                                             \
    X(void, expand,                                                                                              \
      (const float* values, const uint16_t* bits, const int64_t* starts, int64_t c, int64_t area, int64_t n,     \
       float* x, int threads))                                                                                   \
    X(bool, is_whole,                                                                                            \
      (const uint16_t* bits, const int64_t* starts, int64_t c, int64_t area, int64_t n, int64_t room,            \
       int threads))                                                                                             \
    X(void, grad_weight,                                                                                         \
      (const ConvShape& shape, const float* values, const uint16_t* bits, const int64_t* starts,                 \
       const float* grad, float* grad_weight, int threads))                                                      \
    X(Packed, compress_count_pairs,                                                                              \
      (const bf16* x, const float* scale, const float* shift, float threshold, int64_t c, int64_t area,          \
       int64_t n, int32_t* counts, int64_t* starts, int threads))                                                \
    X(void, compress_fill_pairs,                                                                                 \
      (const bf16* x, const float* scale, const float* shift, float threshold, int64_t c, int64_t area,          \
       int64_t n, const int32_t* counts, const int64_t* starts, float* values, uint16_t* bits, int threads))     \
    X(void, grad_weight_pairs,                                                                                   \
      (const ConvShape& shape, const float* values, const uint16_t* bits, const int64_t* starts,                 \
       const bf16* grad, float* grad_weight, int threads))

#define SWAT_KEPT(X)                                                                                             \
    X(int64_t, kept_parts, (int64_t n))                                                                          \
    X(int64_t, mark_kept,                                                                                        \
      (const float* x, const uint8_t* mask, float limit, int64_t n, uint64_t* bits, int64_t* starts,             \
       int threads))                                                                                             \
    X(int64_t, count_marked, (const uint64_t* bits, int64_t n, int64_t* starts))                                 \
    X(void, gather_kept,                                                                                         \
      (const float* x, const uint64_t* bits, const int64_t* starts, int64_t n, float* values, int threads))      \
    X(int64_t, keep_flat,                                                                                        \
      (const float* x, const uint8_t* mask, float limit, int64_t n, uint64_t* bits, float* values, int64_t room, \
       int threads))                                                                                             \
    X(void, scatter_kept, (const float* values, const uint64_t* bits, int64_t n, float* x, int threads))         \
    X(int64_t, mark_kept_bf16,                                                                                   \
      (const bf16* x, const uint8_t* mask, float limit, int64_t n, uint64_t* bits, int64_t* starts,              \
       int threads))                                                                                             \
    X(void, gather_kept_bf16,                                                                                    \
      (const bf16* x, const uint64_t* bits, const int64_t* starts, int64_t n, bf16* values, int threads))        \
    X(void, scatter_kept_bf16, (const bf16* values, const uint64_t* bits, int64_t n, bf16* x, int threads))

#define SWAT_PEAK(X)                                                                                             \
    X(void, peak_registers, (int64_t rounds, float* sink, int threads))                                          \
    X(void, peak_loads, (const float* tile, int64_t rounds, float* sink, int threads))                           \
    X(int64_t, peak_operations, ())

#define SWAT_KERNELS(X)                                                                                          \
    SWAT_SELECTION(X) SWAT_SPARSE_WEIGHTS(X) SWAT_LAYER(X) SWAT_DEPTHWISE(X) SWAT_INFERENCE(X)                  \
    SWAT_FOURS(X) SWAT_SPARSE_ACTIVATIONS(X) SWAT_KEPT(X) SWAT_PEAK(X)

namespace torchswat {

struct Kernels {
#define SWAT_POINTER(result, name, arguments) result(*name) arguments;
    SWAT_KERNELS(SWAT_POINTER)
    SWAT_ENTRYWISE(SWAT_POINTER, float, )
    SWAT_ENTRYWISE(SWAT_POINTER, bf16, _bf16)
#undef SWAT_POINTER
};

#ifdef SWAT_ISA
namespace SWAT_ISA {
#define SWAT_DECLARE(result, name, arguments) result name arguments;
SWAT_KERNELS(SWAT_DECLARE)
#undef SWAT_DECLARE
#define SWAT_DECLARE_FOR(result, name, arguments) template <class Entry> result name arguments;
SWAT_ENTRYWISE(SWAT_DECLARE_FOR, Entry, )
#undef SWAT_DECLARE_FOR
#define SWAT_INSTANTIATE(result, name, arguments) template result name arguments;
}  // namespace SWAT_ISA
#endif

}  // namespace torchswat
