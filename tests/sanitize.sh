#!/usr/bin/env bash
# Tests of the compiled module, once with the sanitizers of addresses and undefined behaviour, and once with that of threads:
# `sanitize.sh PYTHON`. Kernels are compiled without optimization, which takes some minutes. Of PyTorch and Python nothing is
# instrumented: what they do with the module's memory is not seen.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
export PYROMANCY_CUDA=0 PYTHONMALLOC=malloc

build() { PYROMANCY_SANITIZE=$1 "$python" setup.py -q build --build-lib "build/$2"; }
library() { readlink -f "$("${CXX:-c++}" -print-file-name="$1")"; }

build address,undefined addresses
PYTHONPATH=$PWD/build/addresses LD_PRELOAD="$(library libasan.so) $(library libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  "$python" -m pytest -q -s --quick tests/plan tests/ops tests/methods tests/run --ignore tests/ops/test_triton.py

build thread threads
forks=build/threads/forks_and_joins.so
"${CXX:-c++}" -std=c++20 -O1 -fsanitize=thread -fPIC -shared tests/support/forks_and_joins.cpp -o $forks -ldl
echo 'race:_dl_deallocate_tls' >build/threads/suppressions # of a thread that has ended, by another that ends
PYTHONPATH=$PWD/build/threads LD_PRELOAD="$(library libtsan.so) $PWD/$forks" OMP_NUM_THREADS=4 \
  TSAN_OPTIONS=exitcode=66:suppressions=$PWD/build/threads/suppressions \
  setarch -R "$python" -m pytest -q -s --quick tests/ops/test_native_promises.py tests/run/test_threads.py
