// Scratch memory that frees itself; std::vector would leave template code of one instruction set to all (see vec.h).
#pragma once
#include <cstddef>
#include <new>

namespace torchswat::SWAT_ISA {

template <class T> struct Buffer {
    T* data;
    explicit Buffer(size_t count) : data(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)))) {}
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T& operator[](size_t i) { return data[i]; }
    const T& operator[](size_t i) const { return data[i]; }
};

}  // namespace torchswat::SWAT_ISA
