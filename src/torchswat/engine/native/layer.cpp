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

namespace torchswat::SWAT_ISA {
namespace {

constexpr float smallest = 1e-45f;     // as a threshold it keeps all but zeros
constexpr int64_t sample_size = 16384;  // a density error of about 0.3 points at a fifth kept

struct Lists {  // packed weights of one product
    Buffer<int32_t> starts;
    Buffer<float> values;
    Buffer<uint16_t> offsets;

    Lists(const ConvShape& s, int product)
        : starts(size_t(weight_starts(s, product))), values(size_t(weight_capacity(s, product))),
          offsets(size_t(weight_capacity(s, product))) {}
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
    Lists lists(shape, 0);
    const Packed packed = pack_weights(shape, weights, mask, limit, lists.all(), {}, nullptr, threads);
    Buffer<float> workspace{size_t(conv_workspace(shape, threads))};
    conv_forward(shape, x, lists.starts.data, lists.values.data, lists.offsets.data, bias, y, workspace.data, threads);
    return packed;
}

void sparse_grad_input(const ConvShape& shape, const float* grad_y, const float* weights, const uint8_t* mask,
                       float limit, float* grad_x, int threads) {
    Lists lists(shape, 1);
    pack_weights(shape, weights, mask, limit, {}, lists.all(), nullptr, threads);
    Buffer<float> workspace{size_t(conv_workspace(shape, threads))};
    conv_grad_input(shape, grad_y, lists.starts.data, lists.values.data, lists.offsets.data, grad_x, workspace.data,
                    threads);
}

// The sum of each of `channels` stretches of `length`: of a bias, the gradient.
void channel_sums(const float* x, int64_t channels, int64_t length, float* sums, int threads) {
    constexpr int64_t piece = 2048;  // entries whose sum stays in float
#pragma omp parallel for num_threads(threads) schedule(static) if (channels * length > 1 << 15)
    for (int64_t c = 0; c < channels; ++c) {
        double total = 0;
        for (int64_t begin = 0; begin < length; begin += piece) {
            const float* from = x + c * length + begin;
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

}  // namespace torchswat::SWAT_ISA
