# shellcheck shell=bash
# What the set-up scripts share: saying what goes on, long commands that show life, checks before the
# work begins. Sourced, never run.

if [[ -t 1 ]]; then
  HEARTBEAT_SECONDS=1
else
  HEARTBEAT_SECONDS=10
fi

# Exit codes as everywhere in hvdyolo: 2 wrong usage or a missing tool, 70 an internal failure, 74 I/O.
say() { printf '%s\n' "$*"; }
fail() {
  local code=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$code"
}

require_linux() {
  if [[ $(uname -s) != Linux ]]; then fail 2 "hvdyolo runs on Linux, and this is $(uname -s)."; fi
}

duration() {
  if (($1 < 60)); then printf '%d s' "$1"; else printf '%d m %02d s' $(($1 / 60)) $(($1 % 60)); fi
}

# The last thing a log says about how far it is, for pulse. CMake's makefiles print "[ 42%]".
percent_in() { grep -aoE '\[ *[0-9]+%\]' "$1" 2>/dev/null | tail -n 1 | tr -dc '0-9'; }

pulse() {
  local label=$1 seconds=$2 log=$3 percent
  percent=$(percent_in "$log" || true)
  if [[ -t 1 ]]; then
    printf '\r    %s: %s%s \033[K' "$label" "${percent:+$percent %, }" "$(duration "$seconds")"
  else
    printf '    %s: %s%s\n' "$label" "${percent:+$percent %, }" "$(duration "$seconds")"
  fi
}

WATCHED=""

# Runs a command in a process group of its own, its output in LOG, and shows that it lives.
#   watched LABEL LOG COMMAND…
watched() {
  local label=$1 log=$2 started=$SECONDS next=$((SECONDS + HEARTBEAT_SECONDS)) status=0
  shift 2
  # A group of its own, so that an interrupt ends pip together with the compilers below it.
  set -m
  "$@" >>"$log" 2>&1 </dev/null &
  WATCHED=$!
  set +m
  while kill -0 "$WATCHED" 2>/dev/null; do
    sleep 0.3
    if ((SECONDS >= next)); then
      pulse "$label" $((SECONDS - started)) "$log"
      next=$((SECONDS + HEARTBEAT_SECONDS))
    fi
  done
  wait "$WATCHED" || status=$?
  WATCHED=""
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
  return "$status"
}

end_watched() {
  if [[ -n $WATCHED ]]; then kill -TERM -- "-$WATCHED" 2>/dev/null || true; fi
}

trap_interrupts() {
  trap 'end_watched; exit 130' INT
  trap 'end_watched; exit 143' TERM HUP
}

# Names the reason where a log holds a known one, else shows its end.
explain_failure() {
  local what=$1 log=$2
  if grep -aqiE 'no space left on device|disk quota exceeded' "$log"; then
    fail 74 "$what: no space left on the device or in the quota (log: $log)."
  fi
  if grep -aqE 'virtual memory exhausted|Killed signal terminated program|out of memory' "$log"; then
    fail 70 "$what: out of memory; try again with HVDYOLO_BUILD_JOBS=1 (log: $log)."
  fi
  if grep -aqE 'Temporary failure in name resolution|NewConnectionError|Network is unreachable|Connection refused' "$log"; then
    fail 74 "$what: the package index cannot be reached; set PIP_INDEX_URL to a mirror, or PIP_NO_INDEX=1 and PIP_FIND_LINKS to a wheelhouse (log: $log)."
  fi
  if grep -aqE 'steps\.sh: line [0-9]+: .*(Killed|Terminated)' "$log"; then
    fail 70 "$what: its process was killed; run this again (log: $log)."
  fi
  {
    printf -- '--- from %s\n' "$log"
    # The first error says more than pip's account of it.
    grep -anE -m 1 -A 3 '(^|[^a-zA-Z_])([Ee]rror|ERROR)[ :]' "$log" | cut -c1-200 || true
    printf '…\n'
    grep -avE '^ *$' "$log" | tail -n 8 | cut -c1-200
    printf -- '---\n'
  } >&2
  fail 70 "$what (full log: $log)."
}

# The nearest folder above PATH that exists: the file system that a new PATH would be on.
existing_parent() {
  local path=$1
  while [[ ! -e $path ]]; do path=$(dirname "$path"); done
  printf '%s' "$path"
}

free_megabytes() { df -Pm "$(existing_parent "$1")" | awk 'NR == 2 { print $4 }'; }

require_space() {
  local path=$1 needed=$2 purpose=$3 free
  free=$(free_megabytes "$path")
  # Some network file systems do not tell.
  if [[ $free =~ ^[0-9]+$ ]] && ((free < needed)); then
    fail 74 "$purpose needs $needed MB in $path, and $free MB are free there."
  fi
}

# Tried rather than read off the permissions: read-only mounts, quotas and root defeat those.
require_writable() {
  local path=$1 advice=$2 probe
  if ! mkdir -p "$path" 2>/dev/null || ! probe=$(mktemp "$path/.probe.XXXXXX" 2>/dev/null); then
    fail 74 "cannot write to $path; $advice"
  fi
  rm -f "$probe"
}

# Holds LOCK on descriptor 9 until this script and everything it started have ended, also after a kill
# of the script alone: whatever still writes keeps its copy of the descriptor.
hold_lock() {
  local lock=$1 purpose=$2 status=0
  if ! command -v flock >/dev/null; then return 0; fi
  exec 9>>"$lock"
  flock -n -E 75 9 || status=$?
  if ((status == 75)); then
    say "    $purpose is under way in another process; waiting for it"
    flock 9
  elif ((status != 0)); then
    # Some network file systems have no locks; the rename at the end keeps what is made there whole.
    say "    note: $(dirname "$lock") has no file locks; do not run this twice at once"
  fi
}

cache_directory() {
  printf '%s' "${HVDYOLO_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/hvdyolo}"
}

COMPILER_ADVICE="install one (Debian, Ubuntu: apt install g++ make; Fedora: dnf install gcc-c++ make; \
conda: conda install -c conda-forge cxx-compiler make; a cluster: module load gcc) and run this again."

require_compiler() {
  local compiler="" standard=${1:-17} header=optional
  for compiler in ${CXX:-c++ g++ clang++}; do
    if command -v "$compiler" >/dev/null; then break; fi
    compiler=""
  done
  if [[ -z $compiler ]]; then fail 2 "no C++ compiler found, and Horovod has to be compiled: $COMPILER_ADVICE"; fi
  if ! command -v make >/dev/null; then fail 2 "make is missing, and Horovod has to be compiled: $COMPILER_ADVICE"; fi
  if ((standard >= 20)); then header=compare; fi
  if ! printf '#include <%s>\nint main() { return 0; }\n' "$header" |
    "$compiler" "-std=c++$standard" -fsyntax-only -x c++ - >/dev/null 2>&1; then
    fail 2 "the C++ compiler $compiler cannot compile C++$standard, and this torch needs it: $COMPILER_ADVICE"
  fi
}

require_python_headers() {
  local python=$1 header
  header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
  if [[ ! -f $header ]]; then
    fail 2 "$header is missing, and Horovod is compiled against it: install Python's headers (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel) and run this again."
  fi
}

# pip, kept from what a site's PIP_* variables and pip.conf would turn into another kind of call; its
# index, mirrors, proxies and certificates stay in force.
run_pip() {
  local python=$1
  shift
  env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_REQUIRE_HASHES -u PIP_NO_DEPS -u PIP_DRY_RUN \
    -u PIP_NO_BINARY -u PIP_ONLY_BINARY -u PIP_CONSTRAINT -u PIP_REQUIREMENT -u PIP_PYTHON \
    -u PIP_EDITABLE -u PIP_REPORT -u PIP_QUIET -u PIP_IGNORE_INSTALLED -u PIP_UPGRADE \
    -u PIP_PRE -u PIP_LOG PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$python" -m pip "$@"
}
