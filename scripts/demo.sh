#!/usr/bin/env bash
# From nothing to pictures with boxes: draw a dataset, pack it, train on two ranks, evaluate, detect.
# `make demo` sets up .venv and calls this.
#
#   scripts/demo.sh [IMAGES]
set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/steps.sh
source "$ROOT/scripts/steps.sh"
cd "$ROOT"

readonly BIN=.venv/bin
readonly OUT=demo
readonly IMAGES=${1:-500}
readonly STEPS=6
readonly WEIGHTS=$OUT/run/weights/last.safetensors

step=0 elapsed=()

# Shows the command as a user would type it, runs it, and keeps its time.
run_step() {
  local name=$1 usual=$2 started=$SECONDS seconds
  shift 2
  step=$((step + 1))
  say ""
  say "[$step/$STEPS] $name (usually $usual)"
  say "  \$ $*"
  "$@" || fail $? "the demo stopped at step $step, $name; see above."
  seconds=$((SECONDS - started))
  elapsed+=("$(printf '%-10s %s' "$name" "$(duration "$seconds")")")
}

ranks() { printf '%s\n' "$BIN/horovodrun" -np 2 "$BIN/hvdyolo"; }

read_result() { "$BIN/python" -c 'import json, sys; print(f"{json.load(open(sys.argv[1]))[sys.argv[2]]:.3f}")' "$OUT/eval.json" "$1"; }

main() {
  local hvdyolo=() started=$SECONDS
  mapfile -t hvdyolo < <(ranks)
  # A demo begins at the beginning: a finished run under the same name would only be resumed.
  rm -rf "$OUT"
  mkdir -p "$OUT"
  run_step draw "10 seconds" "$BIN/python" data_tools/synth.py --out "$OUT/source" --images "$IMAGES" --classes 4 --seed 0
  run_step pack "10 seconds" "$BIN/python" data_tools/pack.py --source yolo --root "$OUT/source" --out "$OUT/packed"
  run_step train "2 minutes" "${hvdyolo[@]}" train --config demo --data "$OUT/packed" --run "$OUT/run"
  run_step evaluate "15 seconds" "${hvdyolo[@]}" eval --weights "$WEIGHTS" --data "$OUT/packed" --split val --json "$OUT/eval.json"
  run_step detect "15 seconds" "$BIN/hvdyolo" detect --weights "$WEIGHTS" --source "$OUT/source/images/val" --out "$OUT/detections"
  run_step merge "5 seconds" "$BIN/hvdyolo" merge "$OUT/detections" --format coco
  say ""
  say "done in $(duration $((SECONDS - started)))"
  printf '  %s\n' "${elapsed[@]}"
  say ""
  say "  AP            $(read_result ap) (AP50 $(read_result ap50)), all of it in $OUT/eval.json"
  say "  pictures      $OUT/detections/pictures/"
  say "  detections    $OUT/detections/merged/detections.json"
  say "  weights       $WEIGHTS"
  say "  logs          $OUT/run/logs/, numbers in $OUT/run/metrics.jsonl"
}

main
