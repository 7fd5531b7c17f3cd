#include <pybind11/pybind11.h>

#include <torch/csrc/stable/version.h>

#include <string>

#include "cpu/isa.h"

#define PYROMANCY_TEXT_(x) #x
#define PYROMANCY_TEXT(x) PYROMANCY_TEXT_(x)

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  py::list sets;
  sets.append("default");
#if PYROMANCY_X86_ISAS
  sets.append("avx2");
  sets.append("avx512");
#endif
  info["instruction_sets"] = sets;
#ifdef PYROMANCY_CUDA_VERSION
  py::dict cuda;
  cuda["version"] = PYROMANCY_TEXT(PYROMANCY_CUDA_VERSION);
  cuda["archs"] = PYROMANCY_TEXT(PYROMANCY_CUDA_ARCHS);
  info["cuda"] = cuda;
#else
  info["cuda"] = py::none();
#endif
  // major << 56 | minor << 48
  info["torch_target"] = std::to_string(TORCH_FEATURE_VERSION >> 56 & 0xff) + "." +
                         std::to_string(TORCH_FEATURE_VERSION >> 48 & 0xff);
  return info;
}

// How `same_contents` looks at an object; capture/watch.py has the same list.
enum Kind : long { kDict, kNames, kList, kCell, kFunction, kClass, kInstance };

// Whether a dictionary has these keys and values, in order, and no others.
bool same_items(PyObject* dict, PyObject* expected, Py_ssize_t first, PyObject* any) {
  if (PyDict_Size(dict) * 2 + first != PyTuple_GET_SIZE(expected))
    return false;
  Py_ssize_t position = 0, i = first;
  PyObject *key, *value;
  while (PyDict_Next(dict, &position, &key, &value)) {
    PyObject* const wanted = PyTuple_GET_ITEM(expected, i + 1);
    if (key != PyTuple_GET_ITEM(expected, i) || (wanted != any && wanted != value))
      return false;
    i += 2;
  }
  return true;
}

bool same(long kind, PyObject* object, PyObject* expected, PyObject* any, PyObject* missing) {
  const auto is = [&](PyObject* held, Py_ssize_t i) {
    return (held ? held : missing) == PyTuple_GET_ITEM(expected, i);
  };
  switch (kind) {
  case kDict:
    return same_items(object, expected, 0, any);
  case kNames:
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(expected); i += 2)
      if (!is(PyDict_GetItemWithError(object, PyTuple_GET_ITEM(expected, i)), i + 1))
        return false;
    return true;
  case kList:
    if (PyList_GET_SIZE(object) != PyTuple_GET_SIZE(expected))
      return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(expected); ++i)
      if (!is(PyList_GET_ITEM(object, i), i))
        return false;
    return true;
  case kCell:
    return is(py::reinterpret_steal<py::object>(PyCell_Get(object)).ptr(), 0);
  case kFunction:
    return is(PyFunction_GetCode(object), 0) && is(PyFunction_GetDefaults(object), 1) &&
           is(PyFunction_GetKwDefaults(object), 2) && is(PyFunction_GetClosure(object), 3);
  case kClass: {
    const auto* const type = reinterpret_cast<PyTypeObject*>(object);
    return is(type->tp_mro, 0) && same_items(type->tp_dict, expected, 1, any);
  }
  case kInstance:
    return is(reinterpret_cast<PyObject*>(Py_TYPE(object)), 0) &&
           is(py::reinterpret_steal<py::object>(PyObject_GenericGetDict(object, nullptr)).ptr(), 1);
  }
  return false;
}

// Whether objects hold what they held, by identity. Each entry is a kind, an object and a tuple of
// what it held, with `any` for what may be anything and `missing` for what is not there.
bool same_contents(const py::list& entries, const py::object& any, const py::object& missing) {
  for (const py::handle entry : entries)
    if (!same(PyLong_AsLong(PyTuple_GET_ITEM(entry.ptr(), 0)), PyTuple_GET_ITEM(entry.ptr(), 1),
              PyTuple_GET_ITEM(entry.ptr(), 2), any.ptr(), missing.ptr())) {
      PyErr_Clear();
      return false;
    }
  return true;
}

} // namespace

// Loading the module registers the operators' implementations: each source has its own.
PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of pyromancy: what was built and what runs here.";
  m.def("build_info", &build_info,
        "Compiler, instruction sets, CUDA (None, or its version and architectures) and the oldest "
        "torch that this build supports.");
  m.def("cpu_capability", &pyromancy::isa_name,
        "The instruction set the CPU kernels use: \"avx512\", \"avx2\" or \"default\".");
  m.def("same_contents", &same_contents,
        "Whether objects hold what they held, by identity: see pyromancy/capture/watch.py.");
}
