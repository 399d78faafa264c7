#!/usr/bin/env bash
# Every check, each to its end, so that one run shows all there is to mend.
set -uo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$ROOT" || exit 74
readonly BIN=$ROOT/.venv/bin
failed=()

check() {
  local name=$1
  shift
  printf '== %s\n' "$name"
  "$@" || failed+=("$name")
}

# Every shell script: by its name, or by its first line where it has no ending.
shell_scripts() {
  find scripts slurm benchmarks tests .ci -type f -name '*.sh' 2>/dev/null
  find .ci -type f ! -name '*.*' 2>/dev/null
}

check "ruff check" "$BIN/ruff" check .
check "ruff format" "$BIN/ruff" format --check .
check "mypy --strict" "$BIN/mypy"
check "import-linter" "$BIN/lint-imports"
# For any processor, and for those that parts are written for.
processors=("")
if [[ $(uname -m) == x86_64 ]]; then processors+=("-mavx2"); fi
for processor in "${processors[@]}"; do
  # shellcheck disable=SC2086  # no processor is no argument
  check "C compiler's warnings $processor" \
    "${CC:-cc}" -std=gnu11 -Wall -Wextra -Werror -fopenmp -fsyntax-only $processor hvdyolo/ops/native/*.c
done
mapfile -t scripts < <(shell_scripts | sort)
check "shellcheck (${#scripts[@]} scripts)" "$BIN/shellcheck" -x "${scripts[@]}"

if ((${#failed[@]} > 0)); then
  printf 'lint: failed: %s\n' "${failed[*]}" >&2
  exit 1
fi
printf 'lint: all checks passed\n'
