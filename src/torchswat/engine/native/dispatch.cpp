// The one decision on instruction sets; TORCHSWAT_ISA=avx512bf16|avx512vnni|avx512|avx2|plain makes it by hand.
#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

#define SWAT_TABLE(name) \
    namespace torchswat::name { extern const Kernels kernels; }
SWAT_TABLE(plain)
#ifdef SWAT_HAS_avx2
SWAT_TABLE(avx2)
#endif
#ifdef SWAT_HAS_avx512
SWAT_TABLE(avx512)
#endif
#ifdef SWAT_HAS_avx512vnni
SWAT_TABLE(avx512vnni)
#endif
#ifdef SWAT_HAS_avx512bf16
SWAT_TABLE(avx512bf16)
#endif

namespace torchswat {
namespace {

struct Isa {
    const char* name;
    const Kernels* kernels;
};

// The conditions name the flags that CMakeLists.txt compiles each set with. GCC's test includes the operating
// system's part (it must save the wide registers).
std::vector<Isa> detect() {
    std::vector<Isa> found;
#if defined(SWAT_HAS_avx2) || defined(SWAT_HAS_avx512)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#ifdef SWAT_HAS_avx512
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#ifdef SWAT_HAS_avx512bf16
    if (vnni && __builtin_cpu_supports("avx512bf16")) found.push_back({"avx512bf16", &avx512bf16::kernels});
#endif
#ifdef SWAT_HAS_avx512vnni
    if (vnni) found.push_back({"avx512vnni", &avx512vnni::kernels});
#endif
    if (avx512) found.push_back({"avx512", &avx512::kernels});
#endif
#ifdef SWAT_HAS_avx2
    if (avx2) found.push_back({"avx2", &avx2::kernels});
#endif
    found.push_back({"plain", &plain::kernels});
    return found;
}

const std::vector<Isa>& sets() {
    static const std::vector<Isa> found = detect();
    return found;
}

const Isa& find(const std::string& name, const char* asked_by) {
    std::string known;
    for (const Isa& set : sets()) {
        if (name == set.name) return set;
        known += (known.empty() ? "" : ", ") + std::string(set.name);
    }
    throw std::invalid_argument(std::string(asked_by) + ": the instruction set '" + name +
                                "' is not available on this processor and build; available: " + known + ".");
}

const Isa& first_choice() {
    const char* asked = std::getenv("TORCHSWAT_ISA");
    return asked && *asked ? find(asked, "TORCHSWAT_ISA") : sets().front();
}

const Isa*& current() {
    static const Isa* chosen = &first_choice();
    return chosen;
}

}  // namespace

std::vector<std::string> available() {
    std::vector<std::string> names;
    for (const Isa& set : sets()) names.push_back(set.name);
    return names;
}

void force(const std::string& name) { current() = &find(name, "force"); }
std::string isa() { return current()->name; }
const Kernels& kernels() { return *current()->kernels; }

void invalid(const char* message) { throw std::invalid_argument(message); }

}  // namespace torchswat
