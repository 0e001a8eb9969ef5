// What is needed of DLPack 1, the layout that tensor libraries have agreed on to read each other's tensors by:
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace dlpack {

struct Version {
  std::uint32_t major, minor;
};

constexpr std::int32_t kCPU = 1;
struct Device {
  std::int32_t type, id;
};

constexpr std::uint8_t kFloat = 2, kBfloat = 4;
struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t *shape, *strides;  // strides in elements
  std::uint64_t byte_offset;
};

// The functions of a library; those that are not called here are only there for their place.
struct ExchangeAPI {
  Version version;
  const ExchangeAPI* previous;
  void (*managed_tensor_allocator)();
  void (*managed_tensor_from_py_object_no_sync)();
  void (*managed_tensor_to_py_object_no_sync)();
  int (*dltensor_from_py_object_no_sync)(void* object, Tensor* to);  // -1 with a Python exception
  void (*current_work_stream)();
};

}  // namespace dlpack
