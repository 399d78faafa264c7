#!/usr/bin/env bash
# Makes .venv, which holds everything: Python packages, Open MPI, Horovod, hvdyolo. Run again, it does
# nothing when nothing changed, and repairs what was left half-finished, moved or altered.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/make_env.sh [--check]     (make env)

  --check   test the environment even where it looks ready

variables:
  PYTHON         the interpreter for .venv, 3.10 to 3.12 (default: the first that fits)
  TORCH          another torch version than the pinned one
  TORCH_INDEX_URL  the package index for torch alone, such as PyTorch's own with builds for CPUs only
  MPI            wheel: Open MPI 4.1 from its wheel (the default); site: the one whose mpicc is on PATH
  HVDYOLO_DEVICE auto, cpu or cuda: what Horovod is built for (default: auto)
  HVDYOLO_CACHE  where Horovod's wheel is kept (default: $XDG_CACHE_HOME/hvdyolo or ~/.cache/hvdyolo)
  HVDYOLO_MIN_FREE_MB  megabytes of disk to ask for before starting
  PIP_*          pip's own: mirrors, wheelhouses, certificates
TEXT
}

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/steps.sh
source "$ROOT/scripts/steps.sh"

readonly VENV=$ROOT/.venv
readonly STAMP=$VENV/.ready
# There while pip is changing the environment: found at the start, it means that pip was killed.
readonly BEING_CHANGED=$VENV/.being-changed
readonly LOG=$ROOT/.venv.log
readonly NEEDED_MEGABYTES=${HVDYOLO_MIN_FREE_MB:-3000}
readonly MPI_CHOICE=${MPI:-wheel}
readonly STEPS=7
SITE_MPICC=$(command -v "${MPICC:-mpicc}" || true)
readonly SITE_MPICC

# A site's modules may put other Pythons' packages in front of everything.
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
export PYTHONNOUSERSITE=1

check=no step=0

next_step() {
  step=$((step + 1))
  say "[$step/$STEPS] $*"
}

parse_arguments() {
  for argument in "$@"; do
    case $argument in
      --check) check=yes ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) fail 2 "unknown argument '$argument'; see $0 --help." ;;
    esac
  done
  case $MPI_CHOICE in wheel | site) ;; *) fail 2 "MPI is wheel or site, not '$MPI_CHOICE'." ;; esac
  case ${HVDYOLO_DEVICE:-auto} in auto | cpu | cuda) ;; *) fail 2 "HVDYOLO_DEVICE is auto, cpu or cuda, not '$HVDYOLO_DEVICE'." ;; esac
}

torch_requirement() {
  if [[ -n ${TORCH:-} ]]; then printf 'torch==%s' "$TORCH"; else grep '^torch==' "$ROOT/requirements/torch.txt"; fi
}

pinned=("$ROOT"/requirements/{runtime,build,dev}.txt)
if [[ $MPI_CHOICE == wheel ]]; then pinned+=("$ROOT/requirements/mpi.txt"); fi

# Everything that the environment is made from, as text. Equal text, equal environment.
ingredients() {
  printf 'place %s\ntorch %s\nmpi %s\ndevice %s\n' "$VENV" "$(torch_requirement)" \
    "$MPI_CHOICE" "${HVDYOLO_DEVICE:-auto}"
  if [[ $MPI_CHOICE == site ]]; then printf 'mpicc %s\n' "$SITE_MPICC"; fi
  (cd "$ROOT" && sha256sum setup.py hvdyolo/ops/native/*.[ch] requirements/*.txt scripts/make_env.sh \
    scripts/build_horovod.sh scripts/steps.sh scripts/verify_environment.py)
}

# What speaks against the environment as it is, in words; nothing when it is ready.
why_not_ready() {
  local differences
  if [[ -e $BEING_CHANGED ]]; then
    printf 'an earlier set-up was interrupted'
  elif [[ ! -e $STAMP ]]; then
    printf 'it has not been finished'
  elif ! "$VENV/bin/python" -c '' 2>/dev/null; then
    printf 'its Python does not run any more'
  elif [[ $(<"$STAMP") != "$(ingredients)" ]]; then
    printf 'what it is made from has changed'
  elif [[ -n ${PYTHON:-} && $(base_of "$PYTHON") != "$(base_of "$VENV/bin/python")" ]]; then
    printf 'PYTHON asks for another interpreter'
  elif ! differences=$("$VENV/bin/python" "$ROOT/scripts/check_pins.py" \
    "$(torch_requirement)" horovod hvdyolo "$ROOT/requirements/mpi4py.txt" "${pinned[@]}" 2>&1); then
    printf '%s' "$(head -n 1 <<<"$differences")"
  fi
}

python_fits() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null
}

find_python() {
  local candidate unusable=""
  if [[ -n ${PYTHON:-} ]]; then
    if ! python_fits "$PYTHON"; then fail 2 "PYTHON names $PYTHON, which is not a Python 3.10, 3.11 or 3.12 that runs."; fi
    candidates=("$PYTHON")
  else
    candidates=(python3.11 python3.12 python3.10 python3 python)
  fi
  for candidate in "${candidates[@]}"; do
    if ! command -v "$candidate" >/dev/null || ! python_fits "$candidate"; then continue; fi
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      python=$(command -v "$candidate")
      return
    fi
    unusable=$candidate
  done
  if [[ -n $unusable ]]; then
    fail 2 "$unusable has no venv module: install it (Debian, Ubuntu: apt install python3-venv) or name another interpreter with PYTHON=…"
  fi
  fail 2 "no Python 3.10, 3.11 or 3.12 found: install one, or name it with PYTHON=…"
}

# Why an existing .venv has to be made anew rather than brought up to date; nothing when it need not.
why_start_anew() {
  local old_choice
  if [[ -e $BEING_CHANGED ]]; then
    printf 'an earlier set-up was killed in the middle'
  elif ! "$VENV/bin/python" -c '' 2>/dev/null; then
    printf 'its Python does not run any more'
  elif ! python_fits "$VENV/bin/python"; then
    printf 'its Python is not 3.10, 3.11 or 3.12'
  elif ! grep -qF "$VENV" "$VENV/bin/activate" 2>/dev/null; then
    printf 'it was made for another folder, and its programs name that one'
  elif ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    printf 'its pip does not run'
  elif [[ -n ${PYTHON:-} && $(base_of "$PYTHON") != "$(base_of "$VENV/bin/python")" ]]; then
    printf 'PYTHON asks for another interpreter'
  elif [[ -e $STAMP ]]; then
    old_choice=$(sed -n 's/^mpi //p' "$STAMP")
    if [[ $old_choice != "$MPI_CHOICE" ]]; then printf 'it was made with MPI=%s' "$old_choice"; fi
  fi
}

base_of() { "$1" -c 'import sys; print(sys.base_prefix, sys.version)'; }

# Moved aside first: a removal that is interrupted must not leave half an environment under its name.
remove_venv() {
  local old
  old=$(mktemp -d "$ROOT/.venv.old.XXXXXX")
  mv "$VENV" "$old/"
  rm -rf "$old"
}

# pip under the mark that tells an interrupted change from a finished one.
changing_pip() {
  local label=$1 status=0
  shift
  : >"$BEING_CHANGED"
  watched "$label" "$LOG" run_pip "$VENV/bin/python" "$@" || status=$?
  # pip undoes what it could not finish, unless it was killed.
  if ((status <= 128)); then rm -f "$BEING_CHANGED"; fi
  return "$status"
}

# Everything that can be known to go wrong before minutes are spent on it.
check_machine() {
  local python_tag kept needed=$NEEDED_MEGABYTES
  # An environment that was whole once takes little more.
  if [[ -e $STAMP ]]; then needed=$((needed / 6)); fi
  require_writable "$ROOT" "hvdyolo's folder has to be writable to hold .venv."
  require_space "$ROOT" "$needed" "setting up .venv"
  python_tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  kept=("$(cache_directory)"/wheels/horovod*-"$(torch_requirement | tr -d =)"*-"$python_tag"-*)
  if [[ ! -e ${kept[0]} ]]; then
    require_compiler
    require_python_headers "$python"
    require_writable "$(cache_directory)" "set HVDYOLO_CACHE to a folder that can be written to."
  fi
  if [[ $MPI_CHOICE == site && -z $SITE_MPICC ]]; then
    fail 2 "MPI=site, but there is no mpicc on PATH: load the site's Open MPI module first."
  fi
}

prepare_venv() {
  local reason=""
  if [[ -e $VENV || -L $VENV ]]; then
    if [[ ! -f $VENV/pyvenv.cfg && ! -e $BEING_CHANGED ]]; then
      fail 2 "$VENV exists and is no virtual environment; move it away and run this again."
    fi
    reason=$(why_start_anew)
    if [[ -n $reason ]]; then
      say "    making .venv anew: $reason (downloads are kept)"
      remove_venv
    fi
  fi
  if [[ ! -e $VENV ]]; then
    mkdir "$VENV"
    : >"$BEING_CHANGED"
    watched "virtual environment" "$LOG" "$python" -m venv "$VENV" ||
      explain_failure "the virtual environment could not be made" "$LOG"
  fi
}

install_torch() {
  local index=()
  if [[ -n ${TORCH_INDEX_URL:-} ]]; then index=(--index-url "$TORCH_INDEX_URL"); fi
  changing_pip "torch" install "${index[@]}" -c "$ROOT/requirements/runtime.txt" "$(torch_requirement)" ||
    explain_failure "$(torch_requirement) could not be installed" "$LOG"
}

install_packages() {
  local requirements=() file
  for file in "${pinned[@]}"; do requirements+=(-r "$file"); done
  changing_pip "packages" install "${requirements[@]}" "$(torch_requirement)" ||
    explain_failure "the pinned packages could not be installed" "$LOG"
}

# Programs of the site's MPI under .venv/bin. Not links: mpirun takes the folder it is called from for
# its own.
wrap_site_mpi() {
  local bin program
  bin=$(dirname "$SITE_MPICC")
  for program in mpicc mpicxx mpirun mpiexec; do
    if [[ -x $bin/$program ]]; then
      printf '#!/bin/sh\nexec "%s/%s" "$@"\n' "$bin" "$program" >"$VENV/bin/$program"
      chmod +x "$VENV/bin/$program"
    fi
  done
}

install_mpi4py() {
  local options=()
  if [[ $MPI_CHOICE == site ]]; then
    wrap_site_mpi
    # pip would take a wheel built for another MPI from its own cache.
    options=(--no-binary mpi4py --no-cache-dir)
    export MPICC="$VENV/bin/mpicc"
  fi
  changing_pip "mpi4py" install "${options[@]}" -r "$ROOT/requirements/mpi4py.txt" ||
    explain_failure "mpi4py could not be installed" "$LOG"
}

# torch from the general package index is built with CUDA even for a laptop that has none.
horovod_device() {
  local torch_cuda
  if [[ ${HVDYOLO_DEVICE:-auto} != auto ]]; then
    printf '%s' "$HVDYOLO_DEVICE"
    return
  fi
  torch_cuda=$("$VENV/bin/python" -c 'import torch; print(torch.version.cuda or "")')
  if [[ -n $torch_cuda && ! -e /proc/driver/nvidia/version && ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]] &&
    ! command -v nvcc >/dev/null; then
    printf 'cpu'
  else
    printf 'auto'
  fi
}

install_horovod() {
  local device
  device=$(horovod_device)
  if [[ $device == cpu && ${HVDYOLO_DEVICE:-auto} == auto ]]; then
    say "    neither an NVIDIA driver nor nvcc here: Horovod is built for CPUs"
  fi
  build_horovod "$device" --no-install
  : >"$BEING_CHANGED"
  build_horovod "$device"
  wrap_horovodrun
  rm -f "$BEING_CHANGED"
}

# Twice, because the long part, compiling, leaves the environment alone, and an interruption of it
# should not cost one.
build_horovod() {
  MPICC="$VENV/bin/mpicc" "$ROOT/scripts/build_horovod.sh" --python "$VENV/bin/python" --device "$@"
}

# horovodrun looks for mpirun, and mpirun for the program to start, on PATH, where .venv/bin is only
# after `activate`. And mpirun of Open MPI 5 refuses the options that horovodrun passes by itself.
wrap_horovodrun() {
  local binding=""
  if "$VENV/bin/mpirun" --version | head -n 1 | grep -qE 'Open MPI\) [5-9]'; then
    binding='--binding-args="--bind-to none --map-by slot" '
  fi
  cat >"$VENV/bin/horovodrun" <<WRAPPER
#!/bin/sh
PATH="$VENV/bin:\$PATH"
export PATH
exec "$VENV/bin/python" -c 'import sys; sys.argv[0] = "horovodrun"; del sys.path[0]
from horovod.runner.launch import run_commandline
sys.exit(run_commandline())' $binding"\$@"
WRAPPER
}

install_hvdyolo() {
  # By a path, not an import hook: Python would take a checkout called hvdyolo in the working directory first.
  changing_pip "hvdyolo" install --no-deps --no-build-isolation --config-settings editable_mode=compat -e "$ROOT" ||
    explain_failure "hvdyolo could not be installed" "$LOG"
}

install_everything() {
  step=0
  next_step "virtual environment of $("$python" --version) (10 seconds)"
  prepare_venv
  next_step "$(torch_requirement) (usually 1-2 minutes; a download of 0.2 GB, or 3 GB with CUDA)"
  install_torch
  next_step "other packages, pinned in requirements/ (usually half a minute)"
  install_packages
  next_step "mpi4py for Open MPI, MPI=$MPI_CHOICE (seconds from a wheel, 1-2 minutes from source)"
  install_mpi4py
  next_step "Horovod (seconds when built before, else 3-4 minutes on 2 cores)"
  install_horovod
  next_step "hvdyolo itself"
  install_hvdyolo
  next_step "two ranks under mpirun"
}

# Real ranks, a real reduction. More ranks than cores are fine here, and root is asked for by nobody
# else: containers have no other user.
verify() {
  local result settings=(OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe)
  if (($(id -u) == 0)); then settings+=(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1); fi
  say "--- verification" >>"$LOG"
  watched "verification" "$LOG" env "${settings[@]}" timeout -k 5 180 "$VENV/bin/mpirun" -np 2 \
    "$VENV/bin/python" "$ROOT/scripts/verify_environment.py" || return 1
  result=$(grep -a 'VERIFIED' "$LOG" | tail -n 1)
  if [[ -z $result ]]; then return 1; fi
  say "    ${result#VERIFIED }"
}

write_stamp() {
  ingredients >"$STAMP.new"
  mv "$STAMP.new" "$STAMP"
}

main() {
  local reason
  parse_arguments "$@"
  require_linux
  trap_interrupts
  reason=$(why_not_ready)
  if [[ -z $reason && $check == no ]]; then return; fi
  require_writable "$ROOT" "hvdyolo's folder has to be writable to hold .venv."
  hold_lock "$ROOT/.venv.lock" "a set-up of this folder"
  reason=$(why_not_ready)
  if [[ -z $reason ]]; then
    if [[ $check == no ]] || verify; then return; fi
    reason="two ranks do not meet in it"
  fi
  rm -rf "$ROOT"/.venv.old.*
  : >"$LOG"
  if [[ -e $VENV ]]; then say "setting up .venv: $reason"; else say "setting up .venv"; fi
  find_python
  check_machine
  install_everything
  if ! verify; then
    say "    two ranks did not meet; once more with a new environment"
    remove_venv
    install_everything
    verify || explain_failure "the environment was made, but two ranks under mpirun do not work" "$LOG"
  fi
  write_stamp
  say "ready: $VENV/bin (or: source .venv/bin/activate)"
}

main "$@"
