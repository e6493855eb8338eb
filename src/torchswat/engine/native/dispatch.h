// Which instruction set runs: the best that this processor has, or the one that was asked for.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace torchswat {

std::vector<std::string> available();  // the names of what is built in and runs on this processor, best first
void force(const std::string& name);   // throws std::invalid_argument for a name that is not available
std::string isa();                     // what runs now
const Kernels& kernels();

}  // namespace torchswat
