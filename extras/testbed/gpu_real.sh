#!/bin/bash
# Real text at a real size on one GPU, in six minutes at most; see real.py.
#
#     DATA=FOLDER OUT=FOLDER bash extras/testbed/gpu_real.sh [FLAG OF real.py ...]
#     SIZE=tiny DATA=FOLDER OUT=FOLDER bash extras/testbed/gpu_real.sh    # all of it, on a CPU
#
# DATA holds gsm8k.train, math.train, web_math.train, web_math.val and gsm8k.val, each .jsonl.gz;
# CLEAN, WEB, WEB_VAL and ANSWERS name other files. In OUT then: real.json, real.txt (a table).
set -u
export PYTHONUNBUFFERED=1
cd "$(dirname "$0")/../.."
PY=${PYTHON:-python3}
OUT=$(realpath -m "${OUT:-out/gpu_real}")
DATA=${DATA:-.}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"

read -ra clean <<<"${CLEAN:-$DATA/gsm8k.train.jsonl.gz $DATA/math.train.jsonl.gz}"
read -ra web <<<"${WEB:-$DATA/web_math.train.jsonl.gz}"
read -ra web_val <<<"${WEB_VAL:-$DATA/web_math.val.jsonl.gz}"
flags=(--clean "${clean[@]}" --web "${web[@]}" --web_val "${web_val[@]}"
       --answers "${ANSWERS:-$DATA/gsm8k.val.jsonl.gz}" --out "$WORK")
if [ "${SIZE:-}" = tiny ]; then
  flags+=(--device cpu --tokens 1K --ref_epochs 0.1 --depth 1 --block_size 64 --batch_tokens 256
          --micro_batch 4 --warmup 1 --vocab 512 --shares 0.2 --ratios 0.2)
fi

timeout -k 5 "${LIMIT:-360}" "$PY" extras/testbed/real.py "${flags[@]}" "$@" 2>&1 \
  | tee "$OUT/real.txt"
rc=${PIPESTATUS[0]}
cp "$WORK/real.json" "$OUT/"
exit "$rc"
