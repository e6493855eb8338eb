// The sixteen 64-bit words that a layer's pass reads and writes; engine/state.py names them for Python.
//
// The first are the layer's state. The others describe the pass for its backward pass; a record may be the state itself.
#pragma once
#include <cstdint>
#include <cstring>

namespace torchswat {
namespace record {

enum Word {
    iteration, sparsity,
    weight,                   // its threshold, the sparsity that was searched for, its density
    activation = weight + 3,  // the same
    weight_limit = activation + 3, weight_ties, activation_limit, activation_count, products,
    words = 16
};

inline void put(int64_t* to, int at, double value) { std::memcpy(to + at, &value, sizeof value); }

// Copies the state into the record and counts the pass; returns its number.
inline int64_t begin(const int64_t* state, int64_t* to, bool advances, bool last) {
    if (state != to) std::memcpy(to, state, sizeof(int64_t) * words);
    const int64_t number = last && to[iteration] > 0 ? to[iteration] - 1 : to[iteration];
    to[iteration] += advances;
    return number;
}

struct Chosen {  // of one operand; a negative density is none
    double limit;
    int64_t ties, count;
    double density;
};

inline void end(int64_t* to, bool remembers, double sparsity_now, Chosen of_weight, Chosen of_activation, int64_t which) {
    put(to, weight_limit, of_weight.limit);
    to[weight_ties] = of_weight.ties;
    put(to, activation_limit, of_activation.limit);
    to[activation_count] = of_activation.count;
    to[products] = which;
    if (!remembers) return;
    put(to, sparsity, sparsity_now);
    if (of_weight.density >= 0) put(to, weight + 2, of_weight.density);
    if (of_activation.density >= 0) put(to, activation + 2, of_activation.density);
}

}  // namespace record
}  // namespace torchswat
