// The Python module mpelu.ops._cpu: chooses the instruction set, reads tensors and passes their addresses on.
//
// Of Python it needs the limited C API and of torch nothing but DLPack, so that one binary serves all versions of both.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <new>
#include <vector>

#include "dlpack.h"
#include "statistics.h"

#if defined(__x86_64__)
extern const InstructionSet baseline, avx2, avx512, avx512_bf16;
#else
extern const InstructionSet baseline;
#endif

namespace {

struct Choice {
  const char* name;
  const InstructionSet* kernels;
};

std::vector<Choice> choices_of_this_cpu() {
  std::vector<Choice> choices{{"baseline", &baseline}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2) choices.push_back({"avx2", &avx2});
  if (has_avx512) choices.push_back({"avx512", &avx512});
  if (has_avx512 && __builtin_cpu_supports("avx512bf16")) choices.push_back({"avx512_bf16", &avx512_bf16});
#endif
  return choices;
}

const std::vector<Choice> choices = choices_of_this_cpu();
const InstructionSet* chosen = choices.back().kernels;

PyObject* instruction_sets(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const Choice& choice : choices) {
    PyObject* name = PyUnicode_FromString(choice.name);
    PyList_Append(names, name);
    Py_DecRef(name);
  }
  return names;
}

PyObject* use(PyObject*, PyObject* wanted) {
  for (const Choice& choice : choices)
    if (PyUnicode_CompareWithASCIIString(wanted, choice.name) == 0) {
      chosen = choice.kernels;
      Py_RETURN_NONE;
    }
  return PyErr_Format(PyExc_ValueError, "this CPU has no instruction set %R", wanted);
}

// Calls function(kernels) for the kernels of a dtype, while other Python threads may run.
template <class Function>
PyObject* with_kernels(Index dtype, Function function) {
  bool enough_memory = true;
  PyThreadState* state = PyEval_SaveThread();
  try {
    switch (dtype) {
      case 0: function(chosen->float32); break;
      case 1: function(chosen->float64); break;
      case 2: function(chosen->bfloat16); break;
      case 3: function(chosen->float16); break;
    }
  } catch (const std::bad_alloc&) {
    enough_memory = false;
  }
  PyEval_RestoreThread(state);
  if (!enough_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

// Calls function(kernels, shape, threads, addresses) for the kernels of a dtype.
// The arguments are those of the docstrings below, with as many addresses as there are tensors.
template <int tensors, class Function>
PyObject* call(PyObject* const* arguments, Py_ssize_t count, Function function) {
  constexpr int head = 5;
  if (count != head + tensors)
    return PyErr_Format(PyExc_TypeError, "wanted %d arguments, got %zd", head + tensors, count);
  Index values[head + tensors];
  for (int i = 0; i < head + tensors; ++i) values[i] = PyLong_AsLongLong(arguments[i]);
  if (PyErr_Occurred()) return nullptr;

  Shape shape{values[1] / (values[2] * values[3]), values[2], values[3]};
  int threads = values[4];
  return with_kernels(values[0], [&](auto kernels) { function(kernels, shape, threads, values + head); });
}

template <class T>
T* pointer(Index address) {
  return reinterpret_cast<T*>(address);
}

// The type of tensors, that of parameters, and the functions of the library that they are from, which stays loaded.
PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;
const dlpack::ExchangeAPI* exchange = nullptr;
PyObject* is_neg = nullptr;

PyObject* read_tensors_of(PyObject*, PyObject* const* types, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "wanted 2 arguments, got %zd", count);
  PyObject* capsule = PyObject_GetAttrString(types[0], "__dlpack_c_exchange_api__");
  if (capsule == nullptr) return nullptr;
  auto* found = static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DecRef(capsule);
  if (found == nullptr) return nullptr;
  if (found->version.major != 1 || found->dltensor_from_py_object_no_sync == nullptr)
    return PyErr_Format(PyExc_ImportError, "wanted DLPack 1 with views of tensors, got DLPack %u.%u",
                        found->version.major, found->version.minor);
  if (is_neg == nullptr && (is_neg = PyUnicode_InternFromString("is_neg")) == nullptr) return nullptr;
  Py_IncRef(types[0]);
  Py_IncRef(types[1]);
  tensor_type = reinterpret_cast<PyTypeObject*>(types[0]);
  parameter_type = reinterpret_cast<PyTypeObject*>(types[1]);
  exchange = found;
  Py_RETURN_NONE;
}

// Views so many tensors; they belong to the caller, who keeps them alive.
template <int tensors>
bool view(PyObject* const* objects, dlpack::Tensor (&to)[tensors]) {
  for (int i = 0; i < tensors; ++i) {
    if (tensor_type == nullptr || !PyType_IsSubtype(Py_TYPE(objects[i]), tensor_type)) {
      PyErr_Format(PyExc_TypeError, "wanted a tensor of the type that read_tensors_of() was given, got %R", objects[i]);
      return false;
    }
    if (exchange->dltensor_from_py_object_no_sync(objects[i], &to[i]) != 0) return false;
  }
  return true;
}

// Whether these are plain tensors with memory of the CPU, unless torch as a whole does more than to compute; then views
// them. It is mpelu.ops.plain.is_plain in a tenth of the time, and may say no where that says yes: of what has no memory
// the library raises an exception, or it gives no address.
template <int tensors>
bool view_plain(PyObject* const* objects, dlpack::Tensor (&to)[tensors]) {
  for (int i = 0; i < tensors; ++i) {
    PyTypeObject* type = Py_TYPE(objects[i]);
    if (type != tensor_type && type != parameter_type) return false;
    if (exchange->dltensor_from_py_object_no_sync(objects[i], &to[i]) != 0) {
      PyErr_Clear();
      return false;
    }
    if (to[i].device.type != dlpack::kCPU || to[i].data == nullptr) return false;
    PyObject* negated = PyObject_CallMethodObjArgs(objects[i], is_neg, nullptr);
    if (negated == nullptr) PyErr_Clear();
    else Py_DecRef(negated);
    if (negated != Py_False) return false;  // what lies in memory are the numbers with the other sign
  }
  return true;
}

Index size_of(const dlpack::Tensor& tensor) {
  Index size = 1;
  for (int i = 0; i < tensor.ndim; ++i) size *= tensor.shape[i];
  return size;
}

// The number that Python knows a dtype by, -1 if it is none of ours.
int dtype_of(const dlpack::Tensor& tensor) {
  auto [code, bits, lanes] = tensor.dtype;
  if (lanes != 1) return -1;
  if (code == dlpack::kFloat) return bits == 32 ? 0 : bits == 64 ? 1 : bits == 16 ? 3 : -1;
  return code == dlpack::kBfloat && bits == 16 ? 2 : -1;
}

template <class T>
T* memory_of(const dlpack::Tensor& tensor) {
  return reinterpret_cast<T*>(static_cast<char*>(tensor.data) + tensor.byte_offset);
}

// Whether elements lie side by side in the order of the dimensions, or with the channels last.
bool is_dense(const dlpack::Tensor& tensor) {
  auto follows = [&](Index expected, int last, int first) {
    for (int i = last; i >= first; --i) {
      if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
      expected *= tensor.shape[i];
    }
    return tensor.shape[0] == 1 || tensor.strides[0] == expected;
  };
  if (tensor.ndim == 0 || follows(1, tensor.ndim - 1, 1)) return true;
  return tensor.ndim == 4 && tensor.strides[1] == 1 && follows(tensor.shape[1], 3, 2);
}

bool has_same_strides(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  return a.ndim == b.ndim && std::equal(a.strides, a.strides + a.ndim, b.strides);
}

// Whether each channel of x has a number of its own here, or all have one, in the dtype of the arithmetic.
bool is_parameter(const dlpack::Tensor& parameter, const dlpack::Tensor& x, int dtype) {
  if (dtype_of(parameter) != (dtype == 1 ? 1 : 0)) return false;
  if (parameter.ndim == 0 || (parameter.ndim == 1 && parameter.shape[0] == 1)) return true;
  return parameter.ndim == 1 && x.ndim >= 2 && parameter.shape[0] == x.shape[1] && parameter.strides[0] == 1;
}

PyObject* call_reads(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  dlpack::Tensor tensors[3];
  if (count != 3) return PyErr_Format(PyExc_TypeError, "wanted 3 arguments, got %zd", count);
  if (!view_plain(arguments, tensors)) Py_RETURN_FALSE;
  auto& [x, alpha, beta] = tensors;
  int dtype = dtype_of(x);
  return PyBool_FromLong(dtype >= 0 && size_of(x) > 0 && is_dense(x) && is_parameter(alpha, x, dtype) &&
                         is_parameter(beta, x, dtype) && size_of(alpha) == size_of(beta));
}

PyObject* call_alike(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  dlpack::Tensor tensors[2];
  if (count != 2) return PyErr_Format(PyExc_TypeError, "wanted 2 arguments, got %zd", count);
  return PyBool_FromLong(view_plain(arguments, tensors) && is_dense(tensors[0]) &&
                         has_same_strides(tensors[0], tensors[1]));
}

// Calls function(kernels, operands, tensors) where arguments are x, alpha and beta, other tensors, and how many threads.
template <int tensors, class Function>
PyObject* compute(PyObject* const* arguments, Py_ssize_t count, Function function) {
  if (count != tensors + 1) return PyErr_Format(PyExc_TypeError, "wanted %d arguments, got %zd", tensors + 1, count);
  dlpack::Tensor given[tensors];
  int threads = PyLong_AsLong(arguments[tensors]);
  if (PyErr_Occurred() || !view(arguments, given)) return nullptr;
  const dlpack::Tensor &x = given[0], &alpha = given[1], &beta = given[2];
  if (dtype_of(x) < 0) return PyErr_Format(PyExc_TypeError, "there are no kernels for this dtype");
  Index size = size_of(x), channels = size_of(alpha);
  // in dense memory a stride is the size of what it steps over, whatever the order of the dimensions
  Index inner = channels > 1 ? x.strides[1] : size;
  return with_kernels(dtype_of(x), [&](auto kernels) {
    using T = typename decltype(kernels)::Element;
    using C = Compute<T>;
    Shape shape{size / (channels * inner), channels, inner};
    function(kernels, Operands<T>{kernels, shape, memory_of<C>(alpha), memory_of<C>(beta), threads}, given);
  });
}

PyObject* call_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return compute<4>(arguments, count, [](auto kernels, auto operands, const dlpack::Tensor* tensors) {
    using T = typename decltype(kernels)::Element;
    forward(operands, memory_of<T>(tensors[0]), memory_of<T>(tensors[3]));
  });
}

template <bool from_output>
PyObject* call_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return compute<7>(arguments, count, [](auto kernels, auto operands, const dlpack::Tensor* tensors) {
    using T = typename decltype(kernels)::Element;
    using C = Compute<T>;
    backward(from_output ? kernels.backward_from_output : kernels.backward, operands, memory_of<T>(tensors[3]),
             memory_of<T>(tensors[0]), memory_of<T>(tensors[4]), memory_of<C>(tensors[5]), memory_of<C>(tensors[6]));
  });
}

PyObject* call_moments(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Found found{};
  PyObject* done = call<1>(arguments, count, [&](auto kernels, Shape shape, int threads, const Index* address) {
    using T = typename decltype(kernels)::Element;
    found = moments(kernels, shape, threads, pointer<T>(address[0]));
  });
  if (done == nullptr) return nullptr;
  Py_DecRef(done);
  return Py_BuildValue("ddd", found.square, found.mean, found.variance);
}

bool read_tuple(PyObject* tuple, std::vector<Index>& to) {
  Py_ssize_t size = PyTuple_Size(tuple);
  for (Py_ssize_t i = 0; i < size; ++i) to.push_back(PyLong_AsLongLong(PyTuple_GetItem(tuple, i)));
  return !PyErr_Occurred();
}

PyObject* call_products(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "wanted 5 arguments, got %zd", count);
  View view;
  Index dtype = PyLong_AsLongLong(arguments[0]), x = PyLong_AsLongLong(arguments[3]);
  Index found = PyLong_AsLongLong(arguments[4]);
  if (PyErr_Occurred() || !read_tuple(arguments[1], view.sizes) || !read_tuple(arguments[2], view.strides))
    return nullptr;
  return with_kernels(dtype, [&](auto kernels) {
    using T = typename decltype(kernels)::Element;
    products(kernels, view, pointer<T>(x), pointer<double>(found));
  });
}

// Arguments are read by the format of PyArg_ParseTuple: dtype, size, channels, inner, two numbers and three addresses.
struct Secants {
  long long dtype, size, channels, inner;
  double first, second;
  long long address[3];

  Shape shape() const { return {size / (channels * inner), channels, inner}; }
};

bool read(PyObject* arguments, Secants& to, const char* format, int numbers) {
  if (numbers == 2)
    return PyArg_ParseTuple(arguments, format, &to.dtype, &to.size, &to.channels, &to.inner, &to.first, &to.second,
                            to.address, to.address + 1, to.address + 2);
  return PyArg_ParseTuple(arguments, format, &to.dtype, &to.size, &to.channels, &to.inner, &to.first, to.address,
                          to.address + 1, to.address + 2);
}

PyObject* call_step_aside(PyObject*, PyObject* arguments) {
  Secants given;
  if (!read(arguments, given, "LLLLddLLL:step_aside", 2)) return nullptr;
  return with_kernels(given.dtype, [&](auto kernels) {
    using C = typename decltype(kernels)::C;
    step_aside<C>(given.shape(), given.first, given.second, pointer<C>(given.address[0]), pointer<C>(given.address[1]),
                  pointer<C>(given.address[2]));
  });
}

PyObject* call_shares(PyObject*, PyObject* arguments) {
  Secants given;
  Shares found{};
  if (!read(arguments, given, "LLLLdLLL:shares", 1)) return nullptr;
  PyObject* done = with_kernels(given.dtype, [&](auto kernels) {
    using C = typename decltype(kernels)::C;
    found = shares<C>(given.shape(), given.first, pointer<C>(given.address[0]), pointer<C>(given.address[1]),
                      pointer<C>(given.address[2]));
  });
  if (done == nullptr) return nullptr;
  Py_DecRef(done);
  return Py_BuildValue("dd", found.dead, found.flat);
}

template <class Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"instruction_sets", instruction_sets, METH_NOARGS, "Return the names of those that this CPU has, the best last."},
    {"use", use, METH_O, "Use the instruction set of this name from now on, instead of the best."},
    {"read_tensors_of", as_method(read_tensors_of), METH_FASTCALL,
     "read_tensors_of(tensor, parameter)\n\n"
     "Take tensors of these types from now on, by DLPack's functions for C; needed for the next five."},
    {"reads", as_method(call_reads), METH_FASTCALL,
     "reads(x, alpha, beta)\n\n"
     "Return whether these are tensors whose memory can be computed with as it is: they are on the CPU, of no other type\n"
     "and not lazily negated; x is floating, not empty and contiguous or channels-last; alpha and beta have one element\n"
     "each or one for each channel, in the dtype of the arithmetic."},
    {"alike", as_method(call_alike), METH_FASTCALL,
     "alike(a, b)\n\n"
     "Return whether these are such tensors, and both contiguous or both channels-last; they have one shape."},
    {"forward", as_method(call_forward), METH_FASTCALL,
     "forward(x, alpha, beta, y, threads)\n\n"
     "Compute y. x and y are dense and of one layout; alpha and beta are contiguous, of one size, and float32, for\n"
     "float64 float64."},
    {"backward", as_method(call_backward<false>), METH_FASTCALL,
     "backward(x, alpha, beta, grad, grad_x, grad_alpha, grad_beta, threads)\n\n"
     "Compute the last three tensors. They are as for forward."},
    {"backward_from_output", as_method(call_backward<true>), METH_FASTCALL,
     "backward_from_output(y, alpha, beta, grad, grad_x, grad_alpha, grad_beta, threads)\n\n"
     "Compute the last three tensors, which needs alpha * beta > 0. They are as for forward."},
    {"moments", as_method(call_moments), METH_FASTCALL,
     "moments(dtype, size, channels, inner, threads, x)\n\n"
     "Return the mean square of x, its mean, and the variance of the means of its channels. x is the address of a dense\n"
     "tensor of `size` elements, in which the channel changes after `inner` elements. dtype is 0 for float32, 1 for\n"
     "float64, 2 for bfloat16 and 3 for float16."},
    {"products", as_method(call_products), METH_FASTCALL,
     "products(dtype, sizes, strides, x, found)\n\n"
     "Compute the inner products of n examples, the first dimension of x with these sizes and strides in elements:\n"
     "n * n doubles in found."},
    {"step_aside", call_step_aside, METH_VARARGS,
     "step_aside(dtype, size, channels, inner, share, least, x, steps, beside)\n\n"
     "Compute steps, a share of |x| and of its mean in the channel, and beside = x + steps. dtype is 0 or 1."},
    {"shares", call_shares, METH_VARARGS,
     "shares(dtype, size, channels, inner, little, y, steps, beside)\n\n"
     "Return the share of channels whose slopes (beside - y) / steps are all 0, and that of slopes below `little` times\n"
     "the steepest. dtype is 0 or 1; beside is overwritten."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu",  "MPELU in the memory of the CPU.", 0, methods,
                          nullptr,               nullptr, nullptr,                           nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModuleDef_Init(&definition); }
