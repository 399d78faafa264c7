#!/usr/bin/env bash
# Every benchmark of the data plane, each to its end, then all their claims in one table; exit 1 if any falls short.
# `make bench-data` calls it.
set -uo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 74
readonly BIN=$PWD/.venv/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CLAIMS_FILE=$work/claims
status=0

# One that fails otherwise than by falling short leaves no claims: it is told by its exit code.
measure() {
  printf '\n== %s\n' "$1"
  "$BIN/python" "benchmarks/$1" "${@:2}" || status=1
}

measure data_read.py
measure data_evaluation.py
measure data_augment.py
measure data_workers.py
measure data_order.py
measure data_verify.py
measure data_pack.py --work "$work/pack"
measure data_scale.py --work "$work/scale"
printf '\n== all claims\n'
"$BIN/python" benchmarks/claims.py "$CLAIMS_FILE" || status=1
exit "$status"
