#!/usr/bin/env bash
# On a fresh machine with a GPU: build, check, measure; under ten minutes. One JSON file and one text file come out.
#
#   benchmarks/gpu.sh                       # into gpu-results/
#   OUT=/some/folder benchmarks/gpu.sh
#   PYTHON=python3 benchmarks/gpu.sh        # an interpreter that has torch already; nothing is installed
#
# Rehearsal without a GPU: DEVICE=cpu RECIPES=tiny BUDGET=20s benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-gpu-results}
DEVICE=${DEVICE:-cuda}
RECIPES=${RECIPES:-26m 64m 104m}
BUDGET=${BUDGET:-2m}
NEEDED='import msgspec, numpy, rich, safetensors, tiktoken, tokenizers, torch, zstandard'

began=$SECONDS
if [ -z "${PYTHON:-}" ]; then
  if [ "$DEVICE" = cuda ] && python3 -c "$NEEDED; assert torch.cuda.is_available()" 2>/dev/null; then
    PYTHON=python3 # the machine's own build of torch fits its driver best
  else
    make .venv/.base
    PYTHON=.venv/bin/python
  fi
fi
build_s=$((SECONDS - began))

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
# shellcheck disable=SC2086  # RECIPES is a list of words
exec "$PYTHON" benchmarks/gpu.py --out "$OUT" --device "$DEVICE" --budget "$BUDGET" --build-s "$build_s" $RECIPES
