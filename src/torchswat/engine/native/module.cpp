// The Python module torchswat.engine._native: every kernel of the list, called with addresses.
//
// A pointer travels as an integer (torch's data_ptr(); 0 is the null pointer), the GIL is released, and the
// instruction set is looked up at each call: an impossible TORCHSWAT_ISA is a ValueError at the first. The adaptors
// in Python check shapes, strides and dtypes before.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <type_traits>

#include "dispatch.h"
#include "record.h"

namespace nb = nanobind;
using namespace torchswat;

namespace {

template <class T> using Passed = std::conditional_t<std::is_pointer_v<T>, uintptr_t, T>;

template <class T> T unpack(Passed<T> value) {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(value);
    else return value;
}

template <class Result, class... Arguments>
void bind(nb::module_& module, const char* name, const char* signature, Result (*Kernels::*kernel)(Arguments...)) {
    module.def(
        name,
        [kernel](Passed<Arguments>... values) -> Result {
            nb::gil_scoped_release release;
            return (kernels().*kernel)(unpack<Arguments>(values)...);
        },
        signature);
}

int64_t begin_pass(uintptr_t state, uintptr_t to, bool advances, bool last) {
    return record::begin(reinterpret_cast<const int64_t*>(state), reinterpret_cast<int64_t*>(to), advances, last);
}

void end_pass(uintptr_t to, bool remembers, double sparsity, double limit_of_weight, int64_t ties_of_weight,
              double density_of_weight, double limit_of_activation, int64_t count_of_activation,
              double density_of_activation, int64_t products) {
    record::end(reinterpret_cast<int64_t*>(to), remembers, sparsity, {limit_of_weight, ties_of_weight, 0, density_of_weight},
                {limit_of_activation, -1, count_of_activation, density_of_activation}, products);
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "The compiled kernels of torchswat; see kernels.h for the list and each file for its layout.";
#ifdef _OPENMP
    module.attr("openmp") = true;
#else
    module.attr("openmp") = false;  // every kernel then runs on one thread
#endif
    module.def("available", &available, "Instruction sets that are built in and run here, best first.");
    module.def("force", &force, nb::arg("name"), "Use this instruction set from now on.");
    module.def("isa", &isa, "The instruction set that is in use.");

    module.def("begin_pass", &begin_pass, "Copy the state of a layer into a record (which may be it), count the pass, and return its number.");
    module.def("end_pass", &end_pass, "Write down in a record what was selected in the pass.");

    nb::class_<Threshold>(module, "Threshold", "A threshold, how many exceed and equal it, and whether a NaN was met.")
        .def_ro("value", &Threshold::value)
        .def_ro("greater", &Threshold::greater)
        .def_ro("equal", &Threshold::equal)
        .def_ro("not_a_number", &Threshold::not_a_number);

    nb::class_<Packed>(module, "Packed", "How many entries were packed, and whether a NaN was met.")
        .def_ro("count", &Packed::count)
        .def_ro("not_a_number", &Packed::not_a_number);

    nb::class_<Selected>(module, "Selected", "A selection: its limit, how many equal to it stay, how many are kept, and NaN.")
        .def_ro("limit", &Selected::limit)
        .def_ro("ties", &Selected::ties)
        .def_ro("count", &Selected::count)
        .def_ro("not_a_number", &Selected::not_a_number);

    nb::class_<DensePass>(module, "DensePass", "What a pass with dense products has selected; see kernels.h.")
        .def_ro("weight_limit", &DensePass::weight_limit)
        .def_ro("activation_limit", &DensePass::activation_limit)
        .def_ro("weight_ties", &DensePass::weight_ties)
        .def_ro("activation_count", &DensePass::activation_count)
        .def_ro("not_a_number", &DensePass::not_a_number);

    nb::class_<PackedWeights>(module, "PackedWeights", "Where the packed weights of a product go; no addresses: nowhere.")
        .def(nb::init<>())
        .def("__init__",
             [](PackedWeights* self, uintptr_t starts, uintptr_t values, uintptr_t offsets) {
                 new (self) PackedWeights{reinterpret_cast<int32_t*>(starts), reinterpret_cast<float*>(values),
                                          reinterpret_cast<uint16_t*>(offsets)};
             });

    nb::class_<QuantizedEnd>(module, "QuantizedEnd", "What follows the sums of a product of bytes; see kernels.h.")
        .def("__init__",
             [](QuantizedEnd* self, uintptr_t start, uintptr_t factor, uintptr_t shift, float residual_factor, int zero,
                bool is_float) {
                 if (zero < 0 || zero > 255) throw std::invalid_argument("A zero point is a byte, 0 to 255.");
                 new (self) QuantizedEnd{reinterpret_cast<int32_t*>(start), reinterpret_cast<float*>(factor),
                                         reinterpret_cast<float*>(shift), residual_factor, zero, is_float};
             });

    nb::class_<Search>(module, "Search", "How the operands of a pass are selected, and when.")
        .def(nb::init<double, int, int, bool, bool, bool, bool, bool>());

    nb::class_<Activation>(module, "Activation", "What inference does to each result; see kernels.h for the numbers.")
        .def(nb::init<>())
        .def("__init__",
             [](Activation* self, int kind, float low, float high) {
                 if (kind < Activation::none || kind > Activation::erf) invalid("There is no activation of that number.");
                 new (self) Activation{kind, low, high};
             }, nb::arg("kind"), nb::arg("low") = 0.0f, nb::arg("high") = 0.0f);

    nb::class_<Blocks>(module, "Blocks", "How a weight is divided into blocks.")
        .def(nb::init<int64_t, int64_t, int64_t, int64_t, int, int>());

    nb::class_<ConvShape>(module, "ConvShape", "Sizes of one convolution (see shapes.h).")
        .def(nb::init<int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int>(), nb::arg("n"), nb::arg("c"),
             nb::arg("h"), nb::arg("w"), nb::arg("k"), nb::arg("r"), nb::arg("s"), nb::arg("stride_h"),
             nb::arg("stride_w"), nb::arg("pad_h"), nb::arg("pad_w"), nb::arg("out_h"), nb::arg("out_w"),
             nb::arg("dilation_h") = 1, nb::arg("dilation_w") = 1, nb::arg("outside") = 0);

#define SWAT_BIND(result, name, arguments) bind(module, #name, #result " " #name #arguments, &Kernels::name);
    SWAT_KERNELS(SWAT_BIND)
    SWAT_ENTRYWISE(SWAT_BIND, float, )
    SWAT_ENTRYWISE(SWAT_BIND, bf16, _bf16)
#undef SWAT_BIND
}
