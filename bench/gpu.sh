#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds the extension in place, tries, times, tests and profiles it, what tells most first.
#
#   bash bench/gpu.sh OUTDIR [SECONDS]
#
# Takes SECONDS at most, by default 9 minutes: what does not fit in them is left out.
#
# OUTDIR gets summary.json (what passed, device, versions, date), smoke.json, probe.json, chain.json, em.json, em_more.json
# and operators.json (figures), and logs.tar.gz (what each phase printed), all of them after every phase: whoever stops this
# script has what there was so far. A phase that fails does not stop the next one; the exit status is the number of phases
# that failed, or 64 and above where nothing could be started. If the smoke of the kernel that runs all E-steps of a chain
# fails, all else goes the stepwise way, and the summary says so.
#
# Needs torch with CUDA, nvcc, ninja, pybind11, pytest. Tests run in parallel with pytest-xdist, compute-sanitizer and ncu
# have a phase where they are on the PATH, JAX competes where it sees the GPU. PYTHON names the interpreter,
# PYROMANCY_CUDA_ARCHS the architectures, by default the device's own.
set -u
say() { printf 'bench/gpu.sh: %s\n' "$1" >&2; }

case $#:${2-540} in
  [12]:*[!0-9]* | [!12]:*) say 'usage: bash bench/gpu.sh OUTDIR [SECONDS]'; exit 64 ;;
esac
mkdir -p "$1" || exit 65
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 65
python=${PYTHON:-python3}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

about=$("$python" -c '
import importlib.util, json, sys, time
try:
    import torch
except ImportError:
    sys.exit("torch is not installed")
if torch.version.cuda is None:
    sys.exit(f"torch {torch.__version__} is built without CUDA")
if not torch.cuda.is_available():
    sys.exit("no CUDA device")
print(json.dumps({
    "device": torch.cuda.get_device_name(0),
    "compute_capability": torch.cuda.get_device_capability(0),
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "python": sys.version.split()[0],
    "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "xdist": importlib.util.find_spec("xdist") is not None,
}))' 2>"$logs/start.log") || { say "$(tail -n 1 "$logs/start.log")"; exit 66; }
arch=$("$python" -c 'import json, sys; print(*json.loads(sys.argv[1])["compute_capability"], sep="")' "$about")

export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH} CUBLAS_WORKSPACE_CONFIG=:4096:8
end=$((${2:-540} - 20)) # after which nothing goes on; pytest takes a while to stop
failed=0 phases='' way=chosen

save() { # what there is so far
  tar -czf "$out/logs.tar.gz.new" -C "$logs" --exclude=./probe . && mv "$out/logs.tar.gz.new" "$out/logs.tar.gz"
  ABOUT=$about PHASES=$phases WAY=$way "$python" - "$out" "$logs" <<'SUMMARY'
import json, os, sys
from pathlib import Path

out, logs = map(Path, sys.argv[1:])
phases, tests = {}, {}
for line in os.environ["PHASES"].splitlines():
    name, status, seconds = line.split()
    phases[name] = {"status": int(status) if status.isdigit() else status, "seconds": int(seconds)}
    if name in ("native", "triton") and status != "left-out":
        tests[name] = (logs / f"{name}.log").read_text(errors="replace").splitlines()[-1:]
summary = json.loads(os.environ["ABOUT"]) | {"chains": os.environ["WAY"], "phases": phases, "tests": tests}
whole = out / "summary.json.new"
whole.write_text(json.dumps(summary, indent=1) + "\n")
whole.replace(out / "summary.json")
SUMMARY
}

left_out() { # name, why
  printf '== %s: left out, %s\n' "$1" "$2"
  phases+="$1 left-out 0"$'\n'
}

phase() { # name, seconds, command: stopped as by Ctrl-C, after which pytest still says how far it came
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  limit=$((limit < end - SECONDS ? limit : end - SECONDS))
  if [ $limit -lt 10 ]; then
    left_out "$name" 'no time'
    return
  fi
  timeout ${once-} -s INT --kill-after=15 "$limit" "$@" >"$logs/$name.log" 2>&1 || status=$?
  [ $status = 0 ] || failed=$((failed + 1))
  phases+="$name $status $((SECONDS - start))"$'\n'
  printf '== %s: %s, %d s\n' "$name" \
    "$(case $status in 0) echo passed ;; 124 | 137) echo "stopped after $limit s" ;; *) echo "failed with status $status" ;; esac)" \
    $((SECONDS - start))
  [ $status = 0 ] || tail -n 15 "$logs/$name.log"
  save
  return $status
}

probe() { # what the device can do, by a program of its own
  "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" -O3 -std=c++20 -arch="sm_$arch" -Icsrc bench/gpu_probe.cu -o "$logs/probe" &&
    timeout 20 "$logs/probe" >"$logs/probe.json" && mv "$logs/probe.json" "$out/probe.json"
}
probe >"$logs/probe.log" 2>&1 & # beside the build
probing=$!
phase build 120 env PYROMANCY_CUDA=1 PYROMANCY_CUDA_ARCHS="${PYROMANCY_CUDA_ARCHS:-$arch}" \
  "$python" setup.py build_ext --inplace
"$python" -m pyromancy
wait $probing
status=$?
[ $status = 0 ] || failed=$((failed + 1))
phases+="probe $status $SECONDS"$'\n'
printf '== probe: %s\n' "$(cat "$out/probe.json" 2>/dev/null || tail -n 3 "$logs/probe.log")"

if ! phase smoke 60 "$python" -m bench.gpu_smoke --out "$out/smoke.json"; then
  way=steps
  export PYROMANCY_CUDA_CHAIN=steps
  echo '== the kernel that runs all E-steps fails: from here on chains go the stepwise way'
  left_out chain 'the smoke fails'
else
  phase chain 50 "$python" -m bench.gpu_chain --out "$out/chain.json"
fi
phase em 50 "$python" -m bench.gpu_em --parts tutorial --out "$out/em.json"

# name, seconds, which. The reference is tested elsewhere. A signal goes to pytest alone, not to its group as well: the
# second one would cut off what it says.
tests() {
  local once=--foreground parallel='' broken=''
  case $about in *'"xdist": true'*) parallel='-n 8' ;; esac
  [ $way = chosen ] || broken=' and not tile'
  # shellcheck disable=SC2086 # words
  phase "$1" "$2" "$python" -m pytest tests/gpu -q -p no:cacheprovider -ra $parallel -k "not reference$broken and $3"
  [ -s "$logs/$1.log" ] && tail -n 1 "$logs/$1.log"
}
tests native 80 'not triton'
tests triton 90 triton

# PyTorch's cache would hide from memcheck what lies next to a tensor
for tool in memcheck racecheck; do
  if [ $way = steps ]; then
    left_out $tool 'the smoke fails'
  elif ! command -v compute-sanitizer >/dev/null; then
    left_out $tool 'compute-sanitizer is not on the PATH'
  else
    phase $tool 35 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 9 \
      "$python" -m bench.gpu_smoke --chains small --case highest-1 highest-4 high-8 medium-2
    grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$logs/$tool.log" | tail -n 1
  fi
done
if [ $way = steps ]; then
  left_out profile 'the smoke fails'
elif ! command -v ncu >/dev/null; then
  left_out profile 'ncu is not on the PATH'
else
  phase profile 45 ncu --kernel-name regex:chain_tile_kernel --launch-count 1 --section SpeedOfLight --section WarpStateStats \
    --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis --section SchedulerStats --section InstructionStats \
    "$python" -m bench.gpu_smoke --chains tutorial --case highest-chosen
fi

few='TestValues and (packed or test_value) and not layouts and not large and not triton and not reference and float32 and (packed or 129x129 or 3x2x129 or 2x3x5x7-shared)'
phase em_more 120 "$python" -m bench.gpu_em --parts others compiled sizes --out "$out/em_more.json"
phase operators 40 "$python" -m bench.gpu_operators --out "$out/operators.json"
if command -v compute-sanitizer >/dev/null; then
  phase memcheck_operators 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$python" -m pytest tests/gpu/test_operators.py -q -p no:cacheprovider -k "$few"
else
  left_out memcheck_operators 'compute-sanitizer is not on the PATH'
fi
save

for figures in smoke:smoke chain:chain em:em em:em_more operators:operators; do
  echo
  [ -s "$out/${figures#*:}.json" ] && "$python" -m "bench.gpu_${figures%:*}" --show "$out/${figures#*:}.json"
done
exit $failed
