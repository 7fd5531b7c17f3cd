#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds the extension in place, runs the tests marked `gpu`, checks a few of them with
# compute-sanitizer, times operators, chains and whole EM batches, and prints their tables last. Takes 10 minutes at most.
#
#   bash bench/gpu.sh OUTDIR
#
# OUTDIR gets a log of each phase, operators.json, chain.json and em.json (figures) and summary.json (what passed, device,
# versions, date). A phase that fails does not stop the next one; the exit status is the number of phases that failed, or 64 and
# above where nothing could be started. Needs torch with CUDA, nvcc, ninja, pybind11, pytest; EM batches compete
# with JAX where that sees the GPU.
# PYTHON names the interpreter, PYROMANCY_CUDA_ARCHS the architectures, by default the device's own.
#
# The 600 s: at most 130 for the build, 90 + 90 for tests, 40 + 40 for the sanitizer, 65 for operators, 30 for chains. EM
# batches, which keep what they have measured when they are stopped, get what these leave of 580, but 60 at least and 240
# at most.
set -u
say() { printf 'bench/gpu.sh: %s\n' "$1" >&2; }

[ $# = 1 ] || { say 'usage: bash bench/gpu.sh OUTDIR'; exit 64; }
mkdir -p "$1" || exit 65
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 65
python=${PYTHON:-python3}

arch=$("$python" -c '
import sys
try:
    import torch
except ImportError:
    sys.exit("torch is not installed")
if torch.version.cuda is None:
    sys.exit(f"torch {torch.__version__} is built without CUDA")
if not torch.cuda.is_available():
    sys.exit("no CUDA device")
print("{}{}".format(*torch.cuda.get_device_capability()))
' 2>"$out/start.log") || { say "$(tail -n 1 "$out/start.log")"; exit 66; }
rm -f "$out/start.log"

export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH} CUBLAS_WORKSPACE_CONFIG=:4096:8
failed=0 phases=

phase() { # name, seconds, command
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  [ $status = 0 ] || failed=$((failed + 1))
  phases+="$name $status $((SECONDS - start))"$'\n'
  printf '== %s: %s, %d s\n' "$name" \
    "$(case $status in 0) echo passed ;; 124 | 137) echo "stopped after $limit s" ;; *) echo "failed with status $status" ;; esac)" \
    $((SECONDS - start))
  [ $status = 0 ] || tail -n 15 "$out/$name.log"
}

phase build 130 env PYROMANCY_CUDA=1 PYROMANCY_CUDA_ARCHS="${PYROMANCY_CUDA_ARCHS:-$arch}" \
  "$python" setup.py build_ext --inplace
"$python" -m pyromancy
for backends in native triton; do # compiling Triton's kernels takes long, and is not to keep the others from a verdict
  phase $backends 90 "$python" -m pytest tests/gpu -q -p no:cacheprovider -ra \
    -k "$([ $backends = triton ] && echo triton || echo not triton)"
  tail -n 1 "$out/$backends.log"
done

few='TestValues and (packed or test_value) and not layouts and not large and not triton and not reference and float32 and (packed or 129x129 or 3x2x129 or 2x3x5x7-shared)'
chains='(TestValues and test_options and not mstep and not triton and not reference and float32 and (prior or everything))'
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    phase $tool 40 compute-sanitizer --tool $tool --error-exitcode 9 "$python" -m pytest \
      tests/gpu/test_operators.py tests/gpu/test_chain.py -q -p no:cacheprovider -k "$few or $chains"
    grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|passed|failed' "$out/$tool.log" | tail -n 2
  done
else
  echo '== memcheck, racecheck: left out, compute-sanitizer is not on the PATH'
fi

phase operators 65 "$python" -m bench.gpu_operators --out "$out/operators.json"
phase chain 30 "$python" -m bench.gpu_chain --out "$out/chain.json"
left=$((580 - SECONDS)) # of the whole run
left=$((left < 60 ? 60 : left > 240 ? 240 : left))
phase em $left "$python" -m bench.gpu_em --seconds $((left - 20)) --out "$out/em.json"

PHASES=$phases SANITIZER=$(command -v compute-sanitizer >/dev/null && echo yes || echo no) "$python" - "$out" <<'END'
import json, os, sys, time
from pathlib import Path

import torch

out = Path(sys.argv[1])
lines = (line.split() for line in os.environ["PHASES"].splitlines())


def last_line(phase):
    log = out / f"{phase}.log"
    return log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []


summary = {
    "device": torch.cuda.get_device_name(0),
    "compute_capability": torch.cuda.get_device_capability(0),
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "python": sys.version.split()[0],
    "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "sanitizer": os.environ["SANITIZER"] == "yes",
    "phases": {name: {"status": int(status), "seconds": int(seconds)} for name, status, seconds in lines},
    "tests": [line for phase in ("native", "triton") for line in last_line(phase)],
}
(out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
END
for figures in operators chain em; do
  echo
  [ -s "$out/$figures.json" ] && "$python" -m bench.gpu_$figures --show "$out/$figures.json"
done
exit $failed
