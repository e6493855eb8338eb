// What a sparse layer does with its operands in one pass: select, pack and multiply behind one call each.
//
//     forward       weights --select--> threshold --pack--> lists --conv_forward--> y
//                   x       --select--> threshold --compress--> saved for backward
//     backward      weights --pack--> lists --conv_grad_input--> grad_x          grad_weight.cpp
//
// Packed weights live in scratch memory for the time of a call. What a layer remembers from pass to pass is a record
// of 16 words of 64 bits that the caller keeps as a tensor (`Record` below names them).
#include "buffer.h"
#include "kernels.h"
#include "mask.h"
#include "record.h"
#include "sparse_weights.h"

namespace torchswat::SWAT_ISA {
namespace {

constexpr float smallest = 1e-45f;     // as a threshold it keeps all but zeros
constexpr int64_t sample_size = 16384;  // a density error of about 0.3 points at a fifth kept

struct PackedLists {  // packed weights of one product
    Buffer<int32_t> starts;
    Buffer<float> values;
    Buffer<uint16_t> offsets;

    PackedLists(int64_t lists, int64_t capacity)
        : starts(size_t(lists)), values(size_t(capacity)), offsets(size_t(capacity)) {}
    SparseWeights weights() const { return {starts.data, values.data, offsets.data}; }
    PackedWeights all() { return {starts.data, values.data, offsets.data}; }
};

}  // namespace

// The selection of the k largest magnitudes of one operand. `memory` is its threshold, the sparsity that was searched
// for, and its density. A search is made where it is `due` or nothing is remembered; otherwise the threshold is kept.
// A `frozen` one remembers nothing. Zeros are never kept, so count may be below k.
Selected select_operand(double* memory, const float* values, int64_t n, int64_t k, double sparsity, bool due,
                        bool exact, bool sampled, bool frozen, int threads) {
    const double last = memory[0];
    if (!due && last >= 0) return {float(last) > smallest ? float(last) : smallest, -1, -1, false};
    Selected selected{0, -1, -1, false};
    float threshold;
    if (sampled) {
        threshold = sampled_threshold(values, n, k, sample_size, 0, threads);
    } else {
        const Threshold found = kth_largest_near(values, n, k, float(last > 0 ? last : 0), threads);
        threshold = found.value;
        selected.not_a_number = found.not_a_number;
        selected.count = found.greater + (threshold > 0 ? found.equal : 0);
        if (exact && selected.count > k) selected.ties = k - found.greater, selected.count = k;
    }
    selected.limit = threshold > smallest ? threshold : smallest;
    if (!frozen) memory[0] = threshold, memory[1] = sparsity;
    return selected;
}

// Y = conv(x, the weights that are kept) + bias; what is kept is as of pack_weights. x and y are [c][h][w][n].
Packed sparse_forward(const ConvShape& shape, const float* x, const float* weights, const uint8_t* mask, float limit,
                      const float* bias, float* y, int threads) {
    PackedLists lists(weight_starts(shape, 0), weight_capacity(shape, 0));
    const Packed packed = pack_weights(shape, weights, mask, limit, lists.all(), {}, nullptr, threads);
    Buffer<float> workspace{size_t(conv_workspace(shape, threads))};
    conv_forward(shape, x, lists.starts.data, lists.values.data, lists.offsets.data, bias, y, workspace.data, threads);
    return packed;
}

void sparse_grad_input(const ConvShape& shape, const float* grad_y, const float* weights, const uint8_t* mask,
                       float limit, float* grad_x, int threads) {
    PackedLists lists(weight_starts(shape, 1), weight_capacity(shape, 1));
    pack_weights(shape, weights, mask, limit, {}, lists.all(), nullptr, threads);
    Buffer<float> workspace{size_t(conv_workspace(shape, threads))};
    conv_grad_input(shape, grad_y, lists.starts.data, lists.values.data, lists.offsets.data, grad_x, workspace.data,
                    threads);
}

// The same products in bfloat16: weights are selected in float32 and rounded, results are rounded sums of float32.
Packed sparse_forward_pairs(const ConvShape& shape, const bf16* x, const float* weights, const uint8_t* mask,
                            float limit, const float* bias, bf16* y, int threads) {
    PackedLists lists(pair_starts(shape, Product::forward), pair_capacity(shape, Product::forward));
    const Packed packed = pack_pairs(shape, weights, mask, limit, lists.all(), {}, threads);
    Buffer<float> workspace{size_t(workspace_of(shape, Product::forward, 2, threads))};
    conv_forward_pairs(shape, x, lists.weights(), bias, y, workspace.data, threads);
    return packed;
}

void sparse_grad_input_pairs(const ConvShape& shape, const bf16* grad_y, const float* weights, const uint8_t* mask,
                             float limit, bf16* grad_x, int threads) {
    PackedLists lists(pair_starts(shape, Product::grad_input), pair_capacity(shape, Product::grad_input));
    pack_pairs(shape, weights, mask, limit, {}, lists.all(), threads);
    Buffer<float> workspace{size_t(workspace_of(shape, Product::grad_input, 2, threads))};
    conv_grad_input_pairs(shape, grad_y, lists.weights(), grad_x, workspace.data, threads);
}

namespace {

// y = x where it is kept, and zeros.
void keep(const float* x, int64_t n, const Selected& by, float* y, int threads) {
    if (by.ties < 0) return keep_large(x, n, by.limit, y, threads);
    Buffer<uint8_t> mask{size_t(n)};
    magnitude_mask(x, n, 1, by.limit, by.ties, mask.data, threads);
    keep_marked(x, mask.data, n, y, threads);
}

}  // namespace

// All that a layer does with its operands in a pass whose products are torch's dense ones, on rows that lie as their
// shape says: it selects from the weights [n] and writes them with zeros to `selected`, selects from x [entries] and
// writes it in the flat format to `saved`, which has room for `room` values; either is left out where its address is
// null. Where more values are kept than there is room for, activation_count says so and nothing is gathered.
DensePass dense_forward(const int64_t* state, int64_t* to, const Search& search, const float* weights, int64_t n,
                        int64_t k, float* selected, const float* x, int64_t entries, int64_t kept, uint8_t* saved,
                        int64_t room, int threads) {
    const int64_t number = record::begin(state, to, search.advances, search.last);
    const bool due = search.period == 1 || number < search.warmup || number % search.period == 0;
    const auto select = [&](int word, const float* values, int64_t count, int64_t largest) {
        return select_operand(reinterpret_cast<double*>(to + word), values, count, largest, search.sparsity, due,
                              search.exact, search.sampled, !search.remembers, threads);
    };
    DensePass found{0, 0, -1, -1, 0};
    record::Chosen of_weight{0, -1, -1, -1}, of_activation{0, -1, -1, -1};
    const auto counted = [&](Selected& by, const float* values, int64_t count) {
        if (by.count >= 0 || by.not_a_number) return;
        const Threshold all = count_kept(values, count, by.limit, threads);
        by.count = all.greater + all.equal;
        by.not_a_number = all.not_a_number;
    };
    if (weights) {
        Selected by = select(record::weight, weights, n, k);
        counted(by, weights, n);
        if (by.not_a_number) return found.not_a_number = 1, found;
        if (selected) keep(weights, n, by, selected, threads);
        found.weight_limit = by.limit;
        found.weight_ties = by.ties;
        of_weight = {by.limit, by.ties, by.count, double(by.count) / double(n)};
    }
    if (saved) {
        Selected by = select(record::activation, x, entries, kept);
        counted(by, x, entries);
        if (by.not_a_number) return found.not_a_number = 2, found;
        auto* bits = reinterpret_cast<uint64_t*>(saved);
        auto* values = reinterpret_cast<float*>(bits + (entries + 63) / 64);
        if (by.ties < 0) {
            found.activation_count = keep_flat(x, nullptr, by.limit, entries, bits, values, room, threads);
        } else {
            Buffer<uint8_t> mask{size_t(entries)};
            magnitude_mask(x, entries, 1, by.limit, by.ties, mask.data, threads);
            found.activation_count = keep_flat(x, mask.data, 0, entries, bits, values, room, threads);
        }
        found.activation_limit = by.limit;
        const int64_t count = found.activation_count;
        of_activation = {by.limit, by.ties, count, double(count) / double(entries)};
    }
    record::end(to, search.remembers, search.sparsity, of_weight, of_activation, 0);
    return found;
}

// The same operands again for the backward pass; either is left out where its address is null.
void dense_backward(const float* weights, int64_t n, float limit, int64_t ties, float* selected, const uint8_t* saved,
                    int64_t entries, float* x, int threads) {
    if (selected) keep(weights, n, {limit, ties, -1, false}, selected, threads);
    if (!x) return;
    const auto* bits = reinterpret_cast<const uint64_t*>(saved);
    scatter_kept(reinterpret_cast<const float*>(bits + (entries + 63) / 64), bits, entries, x, threads);
}

// The sum of each of `channels` stretches of `length`: of a bias, the gradient.
namespace {

template <class Entry>
void sum_channels(const Entry* x, int64_t channels, int64_t length, float* sums, int threads) {
    constexpr int64_t piece = 2048;  // entries whose sum stays in float
#pragma omp parallel for num_threads(threads) schedule(static) if (channels * length > 1 << 15)
    for (int64_t c = 0; c < channels; ++c) {
        double total = 0;
        for (int64_t begin = 0; begin < length; begin += piece) {
            const Entry* from = x + c * length + begin;
            const int64_t count = least(piece, length - begin);
            vf sum[4] = {};
            int64_t i = 0;
            for (; i + 4 * W <= count; i += 4 * W)
                for (int way = 0; way < 4; ++way) sum[way] += loadu(from + i + way * W);
            for (; i < count; i += W) sum[0] += load_first(from + i, int(least(W, count - i)));
            const vf all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            for (int lane = 0; lane < W; ++lane) total += double(all[lane]);
        }
        sums[c] = float(total);
    }
}

}  // namespace

void channel_sums(const float* x, int64_t channels, int64_t length, float* sums, int threads) {
    sum_channels(x, channels, length, sums, threads);
}
void channel_sums_bf16(const bf16* x, int64_t channels, int64_t length, float* sums, int threads) {
    sum_channels(x, channels, length, sums, threads);
}

}  // namespace torchswat::SWAT_ISA
