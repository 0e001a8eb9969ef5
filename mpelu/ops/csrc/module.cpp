// The Python module mpelu.ops._cpu: chooses the instruction set and passes addresses on.
//
// Of Python it needs the limited C API and of torch nothing, so that one binary serves all versions of both.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <new>
#include <vector>

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

PyObject* call_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return call<4>(arguments, count, [](auto kernels, Shape shape, int threads, const Index* address) {
    using T = typename decltype(kernels)::Element;
    using C = Compute<T>;
    Operands<T> operands{kernels, shape, pointer<C>(address[0]), pointer<C>(address[1]), threads};
    forward(operands, pointer<T>(address[2]), pointer<T>(address[3]));
  });
}

template <bool from_output>
PyObject* call_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return call<7>(arguments, count, [](auto kernels, Shape shape, int threads, const Index* address) {
    using T = typename decltype(kernels)::Element;
    using C = Compute<T>;
    Operands<T> operands{kernels, shape, pointer<C>(address[0]), pointer<C>(address[1]), threads};
    backward(from_output ? kernels.backward_from_output : kernels.backward, operands, pointer<T>(address[2]),
             pointer<T>(address[3]), pointer<T>(address[4]), pointer<C>(address[5]), pointer<C>(address[6]));
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
    {"forward", as_method(call_forward), METH_FASTCALL,
     "forward(dtype, size, channels, inner, threads, alpha, beta, x, y)\n\n"
     "Compute y. The last four are addresses: x and y of dense tensors of one layout and `size` elements, in which\n"
     "the channel changes after `inner` elements; alpha and beta of one float for each channel (a double for\n"
     "float64). dtype is 0 for float32, 1 for float64, 2 for bfloat16 and 3 for float16."},
    {"backward", as_method(call_backward<false>), METH_FASTCALL,
     "backward(dtype, size, channels, inner, threads, alpha, beta, grad, x, grad_x, grad_alpha, grad_beta)\n\n"
     "Compute the last three. The arguments are as for forward."},
    {"backward_from_output", as_method(call_backward<true>), METH_FASTCALL,
     "backward_from_output(dtype, size, channels, inner, threads, alpha, beta, grad, y, grad_x, grad_alpha, grad_beta)"
     "\n\nCompute the last three, which needs alpha * beta > 0. The arguments are as for forward."},
    {"moments", as_method(call_moments), METH_FASTCALL,
     "moments(dtype, size, channels, inner, threads, x)\n\n"
     "Return the mean square of x, its mean, and the variance of the means of its channels. The arguments are as for\n"
     "forward."},
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
