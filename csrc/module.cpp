#include <pybind11/pybind11.h>

#include <torch/csrc/stable/version.h>

#include <string>
#include <utility>
#include <vector>

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

// How `Contents` looks at an object; capture/watch.py has the same list.
enum Kind : long { kDict, kNames, kList, kCell, kFunction, kClass, kInstance };

// What objects held, by identity: to tell whether they still hold it. The entries must outlive it:
// Python's search for cycles does not look in here.
class Contents {
public:
  // Each entry is a kind, an object and a tuple of what it held, with `any` for what may be
  // anything and `missing` for what is not there.
  Contents(const py::list& entries, py::object any, py::object missing)
      : any_(std::move(any)), missing_(std::move(missing)) {
    for (const py::handle given : entries) {
      Entry entry{PyLong_AsLong(PyTuple_GET_ITEM(given.ptr(), 0)), PyTuple_GET_ITEM(given.ptr(), 1),
                  PyTuple_GET_ITEM(given.ptr(), 2), 0};
      if (entry.kind == kClass && holds(entry))
        entry.version = version_of(entry.object);
      entries_.push_back(entry);
    }
    PyErr_Clear();
  }

  bool same() const {
    for (const Entry& entry : entries_)
      if (!holds(entry)) {
        PyErr_Clear();
        return false;
      }
    return true;
  }

private:
  struct Entry {
    long kind;
    PyObject *object, *held;
    unsigned version; // of a class that held this; 0 where that is not known
  };

  // Python gives a class a number when it is asked for an attribute, and takes it away when the
  // class or one of its bases is changed. No two numbers are alike.
  static unsigned version_of(PyObject* type) {
    py::reinterpret_steal<py::object>(PyObject_GetAttrString(type, "__module__"));
    return reinterpret_cast<PyTypeObject*>(type)->tp_version_tag;
  }

  // Whether a dictionary has these keys and values, in order, and no others.
  bool same_items(PyObject* dict, PyObject* held, Py_ssize_t first) const {
    if (PyDict_Size(dict) * 2 + first != PyTuple_GET_SIZE(held))
      return false;
    Py_ssize_t position = 0, i = first;
    PyObject *key, *value;
    while (PyDict_Next(dict, &position, &key, &value)) {
      PyObject* const wanted = PyTuple_GET_ITEM(held, i + 1);
      if (key != PyTuple_GET_ITEM(held, i) || (wanted != value && wanted != any_.ptr()))
        return false;
      i += 2;
    }
    return true;
  }

  bool holds(const Entry& entry) const {
    PyObject *const object = entry.object, *const held = entry.held;
    const auto is = [&](PyObject* now, Py_ssize_t i) {
      return (now ? now : missing_.ptr()) == PyTuple_GET_ITEM(held, i);
    };
    switch (entry.kind) {
    case kDict:
      return same_items(object, held, 0);
    case kNames:
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(held); i += 2)
        if (!is(PyDict_GetItemWithError(object, PyTuple_GET_ITEM(held, i)), i + 1))
          return false;
      return true;
    case kList:
      if (PyList_GET_SIZE(object) != PyTuple_GET_SIZE(held))
        return false;
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(held); ++i)
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
      if (entry.version != 0 && type->tp_version_tag == entry.version)
        return true;
      return is(type->tp_mro, 0) && same_items(type->tp_dict, held, 1);
    }
    case kInstance:
      return is(reinterpret_cast<PyObject*>(Py_TYPE(object)), 0) &&
             is(py::reinterpret_steal<py::object>(PyObject_GenericGetDict(object, nullptr)).ptr(),
                1);
    }
    return false;
  }

  const py::object any_, missing_;
  std::vector<Entry> entries_;
};

} // namespace

// Loading the module registers the operators' implementations: each source has its own.
PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of pyromancy: what was built and what runs here.";
  m.def("build_info", &build_info,
        "Compiler, instruction sets, CUDA (None, or its version and architectures) and the oldest "
        "torch that this build supports.");
  m.def("cpu_capability", &pyromancy::isa_name,
        "The instruction set the CPU kernels use: \"avx512\", \"avx2\" or \"default\".");
  m.def("multiplies_bfloat16", &pyromancy::multiplies_bfloat16,
        "Whether the CPU kernels take products of bfloat16 where float32 may be rounded to it.");
  py::class_<Contents>(m, "Contents",
                       "What objects held, by identity: see pyromancy/capture/watch.py.")
      .def(py::init<const py::list&, py::object, py::object>())
      .def("same", &Contents::same, "Whether they still hold it.");
}
