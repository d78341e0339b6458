#!/bin/bash
# What one GPU has to show, in under eight minutes: the CUDA tests, the benchmark at 124M parameters,
# the kernels and the memory of a step, and the default run, compiled and not.
#
#     NANOGPT=DIR OUT=FOLDER bash extras/speed/gpu.sh    # NANOGPT: a checkout of nanoGPT, optional
#     SIZE=tiny OUT=FOLDER bash extras/speed/gpu.sh      # every command once, in a minute on a CPU
#
# Each step has a limit of its own, and one that fails stops nothing. In OUT then: log.txt,
# tests.txt, bench.json, probe.json, runs.jsonl and, made of them by report.py, report.md.
# PARTS="tests bench probe default" chooses steps; LIMIT is the time for all, in seconds.
set -u
export PYTHONUNBUFFERED=1
cd "$(dirname "$0")/../.."
PY=${PYTHON:-python3}
OUT=$(realpath -m "${OUT:-out/gpu}")
SIZE=${SIZE:-124m}
PARTS=${PARTS:-tests bench probe default}
LIMIT=${LIMIT:-470}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"
rm -f "$OUT"/{log.txt,tests.txt,bench.json,probe.json,runs.jsonl,report.md}

bench=(--size "$SIZE")
probe=(--size "$SIZE" --ratio 0.2 0.6)
corpus=(--out "$WORK/corpus")
train=()
compiled=--compile
if [ "$SIZE" = tiny ]; then
  bench+=(--steps 4 --rounds 1 --device cpu --arms CLM SLM)
  probe+=(--device cpu --most 8)
  corpus+=(--ref_tokens 20K --web_tokens 20K)
  train+=(--tokens 2048 --depth 1 --batch_tokens 512 --micro_batch 4 --device cpu
          --eval_windows 4 --problems 2)
  compiled=--no-compile
else
  bench+=(--ratio 0.2 0.6 --warm_up 5)
fi
if [ -n "${NANOGPT:-}" ]; then
  bench+=(--nanogpt "$NANOGPT")
fi

wants() {  # PART: whether it is among PARTS
  [[ " $PARTS " == *" $1 "* ]]
}

step() {  # FILE SECONDS COMMAND...: run it within its limit and within LIMIT; output goes to FILE
  local file=$OUT/$1
  local limit=$2
  shift 2
  local left=$((LIMIT - SECONDS))
  if [ "$left" -lt 5 ]; then
    echo "no time for: $*" | tee -a "$file"
    return
  fi
  if [ "$limit" -gt "$left" ]; then
    limit=$left
  fi
  local begin=$SECONDS
  echo "\$ $*" >>"$file"
  # Progress bars end in carriage returns: they are left out.
  timeout -k 5 "$limit" "$@" 2>&1 | tr '\r' '\n' | grep -vE '[0-9]+%\||^ *$' >>"$file"
  local rc=${PIPESTATUS[0]}
  echo "rc $rc, $((SECONDS - begin)) s: $*" | tee -a "$file"
}

run() {  # NAME SCRIPT FLAG...: a training run; its seconds and its last log line go to runs.jsonl
  local name=$1
  shift
  local begin=$SECONDS
  step log.txt 75 "$PY" "$@" --target "$WORK/corpus/ref" --out "$WORK/$name" "${train[@]}"
  local last
  last=$(tail -n 1 "$WORK/$name/log.jsonl" 2>/dev/null)
  echo "{\"name\": \"$name\", \"seconds\": $((SECONDS - begin)), \"last\": ${last:-null}}" \
    >>"$OUT/runs.jsonl"
}

if command -v nvidia-smi >/dev/null; then
  step log.txt 20 nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
fi

# The tests measure nothing, so they run beside the benchmark's warm-up.
if wants tests; then
  step tests.txt 150 "$PY" -m pytest -q -m cuda --durations=10 -s tests/test_cuda.py &
  if ! wants bench; then
    wait
  fi
fi
if wants bench; then
  step log.txt 290 "$PY" extras/speed/bench.py "${bench[@]}" --json "$OUT/bench.json"
fi
if wants probe; then
  step log.txt 70 "$PY" extras/speed/probe.py "${probe[@]}" --json "$OUT/probe.json"
fi
if wants default; then
  step log.txt 40 "$PY" data.py "${corpus[@]}"
  web=$WORK/corpus/web
  run ref_not_compiled train_ref.py --data "$WORK/corpus/ref" --no-compile
  ref=$WORK/ref_not_compiled
  run slm_not_compiled train_slm.py --data "$web" --ref "$ref" --no-compile
  run slm train_slm.py --data "$web" --ref "$ref" $compiled
fi
wait
"$PY" extras/speed/report.py "$OUT" | tee "$OUT/report.md"
