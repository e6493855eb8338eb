// The kernels of one instruction set, as a table of pointers.
#include "kernels.h"

namespace torchswat::SWAT_ISA {

#define SWAT_ENTRY(result, name, arguments) &name,
extern const Kernels kernels{SWAT_KERNELS(SWAT_ENTRY) SWAT_ENTRYWISE(SWAT_ENTRY, float, )
                                 SWAT_ENTRYWISE(SWAT_ENTRY, bf16, )};

}  // namespace torchswat::SWAT_ISA
