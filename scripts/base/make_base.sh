#!/bin/sh
# Make a base policy: record, render, train, measure. Stop it at any time; the same command goes on where it stopped.
#
#     PYTHON=.venv/bin/python sh scripts/base/make_base.sh FOLDER ROUNDS VISION_STEPS ACTION_STEPS [PROCESSES]
#
# FOLDER/recordings and FOLDER/scenes are shared by all sizes, so a larger ROUNDS makes only what is missing.
# The policy is FOLDER/base-ROUNDS-VISION_STEPS-ACTION_STEPS/policy, the attempts lie beside it.
set -eu
folder=$1 rounds=$2 vision=$3 action=$4 processes=${5:-1}
python=${PYTHON:-python}
here=$(dirname "$0")
work=$folder/base-$rounds-$vision-$action
mkdir -p "$work"
"$python" "$here/record.py" --out "$folder/recordings" --rounds "$rounds" --processes "$processes"
"$python" "$here/random_scenes.py" "$folder/recordings" --out "$folder/scenes" --rounds "$rounds" --files "$rounds"
[ -d "$work/policy" ] || "$python" "$here/train.py" "$folder/recordings" --scenes "$folder/scenes" \
    --rounds "$rounds" --work "$work" --vision-steps "$vision" --action-steps "$action" --out "$work/policy"
# Its own tasks, then colors and pairs that it never saw; seeds of validation.
"$python" "$here/measure.py" "$work/policy" --out "$work/attempts.jsonl" --seeds 7000-7019 \
    lift-green lift-blue place-green-red place-white-purple stack-green-red stack-white-purple \
    lift-red place-purple-white place-red-blue place-yellow-green stack-red-blue
