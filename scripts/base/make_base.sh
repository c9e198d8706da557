#!/bin/sh
# Make a base policy: attempts are recorded while it trains on them. Stop it at any time; the same command goes on where
# it stopped.
#
#     PYTHON=.venv/bin/python sh scripts/base/make_base.sh FOLDER FILES STEPS
#
# FILES of attempts in all, STEPS of training. The first 50 files are recorded before the training begins, with the
# included policy; later ones with the newest policy of the training. The result is FOLDER/policy.
set -eu
folder=$1 files=$2 steps=$3
python=${PYTHON:-python}
here=$(dirname "$0")
"$python" "$here/record_attempts.py" base --out "$folder/attempts" --files 50
"$python" "$here/record_attempts.py" "@$folder/work/newest" --out "$folder/attempts" --start 50 --files "$((files - 50))" &
recording=$!
trap 'kill "$recording" 2>/dev/null || true' EXIT INT TERM
[ -d "$folder/policy" ] || "$python" "$here/train.py" "$folder/attempts" --encoder base --steps "$steps" \
    --work "$folder/work" --out "$folder/policy"
# Seeds of validation; the first tasks are among those it was trained on, the others are not.
"$python" "$here/measure.py" "$folder/policy" --out "$folder/attempts.jsonl" --seeds 7000-7019 \
    lift-green lift-blue place-green-red place-white-purple stack-green-red stack-white-purple \
    lift-red place-purple-white place-red-blue place-yellow-green stack-red-blue
