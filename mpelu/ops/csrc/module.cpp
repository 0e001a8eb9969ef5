// The Python module mpelu.ops._cpu: chooses the instruction set and passes addresses on.
//
// Of Python it needs the limited C API and of torch nothing, so that one binary serves all versions of both.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <new>
#include <vector>

#include "tensors.h"

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

// Calls function(kernels, shape, threads, addresses) for the kernels of a dtype, while other Python threads may run.
// The arguments are those of the docstrings below, with as many addresses as there are tensors.
template <int tensors, class Function>
PyObject* call(PyObject* const* arguments, Py_ssize_t count, Function function) {
  constexpr int head = 5;
  if (count != head + tensors)
    return PyErr_Format(PyExc_TypeError, "wanted %d arguments, got %zd", head + tensors, count);
  Index values[head + tensors];
  for (int i = 0; i < head + tensors; ++i) values[i] = PyLong_AsLongLong(arguments[i]);
  if (PyErr_Occurred()) return nullptr;

  bool enough_memory = true;
  PyThreadState* state = PyEval_SaveThread();
  try {
    Shape shape{values[1] / (values[2] * values[3]), values[2], values[3]};
    int threads = values[4];
    auto run = [&](auto kernels) { function(kernels, shape, threads, values + head); };
    switch (values[0]) {
      case 0: run(chosen->float32); break;
      case 1: run(chosen->float64); break;
      case 2: run(chosen->bfloat16); break;
      case 3: run(chosen->float16); break;
    }
  } catch (const std::bad_alloc&) {
    enough_memory = false;
  }
  PyEval_RestoreThread(state);
  if (!enough_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
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
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu",  "MPELU in the memory of the CPU.", 0, methods,
                          nullptr,               nullptr, nullptr,                           nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModuleDef_Init(&definition); }
