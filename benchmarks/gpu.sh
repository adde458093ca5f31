#!/usr/bin/env bash
# On a fresh machine with a GPU: build, check, measure; under ten minutes. One JSON file and one text file come out, and
# are written anew after every step, so that a machine that is taken away leaves what it has answered.
#
#   benchmarks/gpu.sh                        # into gpu-results/
#   DEADLINE=300 OUT=/some/folder benchmarks/gpu.sh      # at most so many seconds in all; steps that do not fit are left out
#   MODE=runs BUDGETS="5m 15m" benchmarks/gpu.sh         # whole runs, and with PROSE and MINIMIND set the race
#   PYTHON=/path/to/python benchmarks/gpu.sh
#
# The machine's own torch is used where it has one, for it fits the driver, and is never touched. What else is missing is
# installed into $OUT/site, from the wheels in $WHEELS where that folder holds any, else from the package index.
#
# Rehearsal without a GPU: DEVICE=cpu RECIPES=tiny BUDGETS=20s DEADLINE=240 benchmarks/gpu.sh
set -euo pipefail
began=$SECONDS
cd "$(dirname "$0")/.."

MODE=${MODE:-check}
OUT=${OUT:-gpu-results}
DEVICE=${DEVICE:-cuda}
RECIPES=${RECIPES:-26m 64m 104m}
WHEELS=${WHEELS:-.whl}
PYTHON=${PYTHON:-python3}
if [ "$MODE" = runs ]; then
  BUDGETS=${BUDGETS:-5m 15m} DEADLINE=${DEADLINE:-2700}
else
  BUDGETS=${BUDGETS:-2m} DEADLINE=${DEADLINE:-540}
fi
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)

# module:package, with what each imports itself; torch is not among them
NEEDED="msgspec:msgspec numpy:numpy rich:rich markdown_it:markdown-it-py mdurl:mdurl pygments:pygments
  safetensors:safetensors tiktoken:tiktoken regex:regex tokenizers:tokenizers zstandard:zstandard"

missing() {
  "$PYTHON" -c 'import sys
from importlib.util import find_spec
print(*(pair.split(":")[1] for pair in sys.argv[1:] if find_spec(pair.split(":")[0]) is None))' $NEEDED
}

export PYTHONPATH="$PWD:$OUT/site${PYTHONPATH:+:$PYTHONPATH}"
if "$PYTHON" -c "import torch; assert '$DEVICE' != 'cuda' or torch.cuda.is_available()" 2>/dev/null; then
  index=()
  if compgen -G "$WHEELS/*.whl" >/dev/null; then index=(--no-index --find-links "$WHEELS"); fi
  for package in $(missing); do
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --target "$OUT/site" \
      ${index[@]+"${index[@]}"} "$package" || echo "not installed: $package" >&2
  done
  still=$(missing)
  if [ -n "$still" ]; then
    echo "error: $PYTHON lacks $still; put wheels for it into $WHEELS/, or set WHEELS" >&2
    exit 2
  fi
else
  make .venv/.base # no torch that reaches the device: one of our own, which needs a package index
  PYTHON=.venv/bin/python
fi
build_s=$((SECONDS - began))

# shellcheck disable=SC2086  # RECIPES and BUDGETS are lists of words
exec "$PYTHON" benchmarks/gpu.py --mode "$MODE" --out "$OUT" --device "$DEVICE" --build-s "$build_s" \
  --deadline "$((DEADLINE - build_s))" --budgets $BUDGETS --recipes $RECIPES
