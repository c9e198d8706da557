#!/usr/bin/env bash
# Run the tests that need a GPU, then measure training steps at batch 64 beside lerobot's own: under 8 minutes.
#
#   benchmarks/gpu.sh FOLDER [option of benchmarks/train.py]...
#
# FOLDER gets gpu.md (the tables, with the card's name), gpu.json (all figures) and tests.xml. Without a Hub, pass
# --vlm FOLDER_OF_SmolVLM2-500M-Video-Instruct (configuration and tokenizer). PYTHON names another interpreter than
# .venv/bin/python. --dry-run instead of other options: the same with the tiny policy on the CPU, to try the script.
set -uo pipefail
if [ $# -lt 1 ]; then
  echo "usage: benchmarks/gpu.sh FOLDER [--dry-run | option of benchmarks/train.py]..." >&2
  exit 2
fi
folder=$1
shift
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-.venv/bin/python}
measure=(--geometry full --device cuda --batch 64 --frames 192 --steps 12 --threads 4 --workers 4 --decoder default)
variants=lerobot,embeddings,kv,compiled,off
marked=gpu
if [ "${1:-}" = --dry-run ]; then
  shift
  measure=(--geometry tiny --device cpu --steps 2)
  variants=lerobot,off,embeddings,kv # compiling for a CPU takes minutes
  marked="not gpu and not slow"
  only=(tests/training/test_kernels.py)
elif ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  echo "gpu.sh: torch finds no GPU here (nvidia-smi shows what the driver finds); nothing was measured" >&2
  exit 2
fi

timeout --kill-after=10 150 "$python" -m pytest -q -m "$marked" --junitxml="$folder/tests.xml" "${only[@]:-tests/training}"
tests=$?
timeout --kill-after=10 300 "$python" benchmarks/train.py "${measure[@]}" --variants "$variants" \
  --profile --markdown "$folder/gpu.md" --json "$folder/gpu.json" "$@"
measured=$?
echo "gpu.sh: tests ended with $tests, the measurement with $measured (124: out of time); results are in $folder"
[ "$tests" -eq 0 ] && [ "$measured" -eq 0 ]
