#!/usr/bin/env bash
# Every benchmark of the data plane, each to its end; exit 1 if any claim falls short. `make bench-data` calls it.
set -uo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 74
readonly BIN=$PWD/.venv/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

measure() {
  printf '\n== %s\n' "$1"
  "$BIN/python" "benchmarks/$1" "${@:2}" || status=1
}

measure data_order.py
measure data_verify.py
measure data_read.py
measure data_evaluation.py
measure data_augment.py
measure data_workers.py
measure data_pack.py --work "$work/pack"
measure data_scale.py --work "$work/scale"
exit "$status"
