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

} // namespace

// Loading the module registers the operators' implementations: each source has its own.
PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of pyromancy: what was built and what runs here.";
  m.def("build_info", &build_info,
        "Compiler, instruction sets, CUDA (None, or its version and architectures) and the oldest "
        "torch that this build supports.");
  m.def("cpu_capability", &pyromancy::isa_name,
        "The instruction set the CPU kernels use: \"avx512\", \"avx2\" or \"default\".");
}
