# shellcheck shell=bash
# What the batch scripts share: the site's settings, the mpirun line, and what to do when a job ends.
# Sourced, never run; sourcing it defines functions only.

# Exit codes as everywhere in hvdyolo.
readonly USAGE=2 DATA=65 STORAGE=74 STOPPED=75 MISMATCH=78

say() { printf 'hvdyolo: %s\n' "$*"; }
fail() {
  local code=$1
  shift
  printf 'hvdyolo: %s\n' "$*" >&2
  exit "$code"
}

# From here on a request to stop waits until there are ranks to pass it to: loading modules takes seconds.
remember_stop() {
  stop_asked=no
  trap 'stop_asked=yes' USR1
}

# Settings of site.sh, their defaults, and the environment in PATH. $1: the folder of these scripts.
prepare_site() {
  local here=$1
  HVDYOLO_ENVIRONMENT="" HVDYOLO_INTERFACE="" HVDYOLO_MPIRUN_ARGUMENTS=() HVDYOLO_MOST_RESTARTS=20
  HVDYOLO_SECONDS_TO_SAVE=10
  if [[ -r $here/site.sh ]]; then
    # Modules and conda's activation use variables that may be unset.
    set +u
    # shellcheck disable=SC1091 # a site's own file
    source "$here/site.sh" || fail "$USAGE" "$here/site.sh ended with $?; mend it."
    set -u
  fi
  if [[ -z $HVDYOLO_ENVIRONMENT && -x $here/../.venv/bin/hvdyolo ]]; then
    HVDYOLO_ENVIRONMENT=$(cd -- "$here/.." && pwd -P)/.venv
  fi
  if [[ -n $HVDYOLO_ENVIRONMENT ]]; then
    if [[ ! -x $HVDYOLO_ENVIRONMENT/bin/hvdyolo ]]; then
      fail "$USAGE" "$HVDYOLO_ENVIRONMENT has no bin/hvdyolo; correct HVDYOLO_ENVIRONMENT in $here/site.sh."
    fi
    export PATH=$HVDYOLO_ENVIRONMENT/bin:$PATH
  fi
  local program
  for program in hvdyolo mpirun python; do
    if ! command -v "$program" >/dev/null; then
      fail "$USAGE" "there is no $program; name the environment in $here/site.sh (see site.example.sh)."
    fi
  done
  # Lustre, GPFS and NFS often have no file locks, and HDF5 refuses to open a file without one.
  export HDF5_USE_FILE_LOCKING=FALSE
  # mpirun starts its daemons by srun: without this, a job of `sbatch --export=NONE` loses PATH there.
  export SLURM_EXPORT_ENV=ALL
  if [[ -n $HVDYOLO_INTERFACE ]]; then
    export NCCL_SOCKET_IFNAME=$HVDYOLO_INTERFACE HOROVOD_GLOO_IFACE=$HVDYOLO_INTERFACE
  fi
}

# Ranks a node, from SLURM's "8" or "8(x4)".
ranks_per_node() {
  local given=${SLURM_NTASKS_PER_NODE:-${SLURM_TASKS_PER_NODE:-1}}
  if [[ ! $given =~ ^([0-9]+)(\(x[0-9]+\))?$ ]]; then
    fail "$USAGE" "every node needs the same number of tasks, not $given; give sbatch --ntasks-per-node."
  fi
  printf '%s' "${BASH_REMATCH[1]}"
}

# Names of the variables that ranks need. Daemons started by srun inherit them; those started by ssh do not.
variables_of_ranks() {
  local name
  for name in PATH LD_LIBRARY_PATH HDF5_USE_FILE_LOCKING; do
    if [[ -n ${!name:-} ]]; then printf '%s\n' "$name"; fi
  done
  compgen -A export HOROVOD_
  compgen -A export NCCL_
}

# Sets mpirun_line to what runs "$@" on every rank.
build_mpirun_line() {
  local ranks name
  ranks=$(ranks_per_node) || exit "$USAGE"
  mpirun_line=(
    mpirun
    # Ranks choose their threads and loader workers themselves, from the cores they may use.
    --bind-to none
    --map-by "ppr:$ranks:node"
    # After a SIGTERM, ranks need longer than Open MPI's 2 seconds to save. Not more than needed: mpirun
    # waits twice this long whenever a rank ends with anything but 0.
    --mca odls_base_sigkill_timeout "$HVDYOLO_SECONDS_TO_SAVE"
  )
  if [[ -n $HVDYOLO_INTERFACE ]]; then
    mpirun_line+=(--mca oob_tcp_if_include "$HVDYOLO_INTERFACE" --mca btl_tcp_if_include "$HVDYOLO_INTERFACE")
  fi
  for name in $(variables_of_ranks); do mpirun_line+=(-x "$name"); done
  mpirun_line+=(
    "${HVDYOLO_MPIRUN_ARGUMENTS[@]}"
    # USR1 would kill a rank that is still importing; Python honours it once its handler is there.
    # shellcheck disable=SC2016 # "$@" is the rank's shell's
    bash -c 'trap "" USR1; exec "$@"' rank
    "$@"
  )
}

# One line that a person can paste into a shell.
print_mpirun_line() {
  local word line=""
  for word in "${mpirun_line[@]}"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  say "on ${SLURM_JOB_NODELIST:-this node}:$line"
}

# Runs "$@" on every rank to its end. SLURM requeues the job by itself when a node fails.
run_once() {
  build_mpirun_line "$@"
  print_mpirun_line
  "${mpirun_line[@]}"
}

# Runs "${@:3}" on every rank, forwarding signals; $1 and $2 as for end_attempt.
run_resumable() {
  local kind=$1 directory=$2 attempt_before saved_before
  shift 2
  read_outcome "$directory"
  attempt_before=${outcome[0]}
  saved_before=$(saved "$kind" "$directory")
  build_mpirun_line "$@"
  print_mpirun_line
  run_with_signals
  end_attempt "$kind" "$directory" "$attempt_before" "$saved_before" "$mpirun_code"
}

# Sets mpirun_code, and terminated to yes if SIGTERM came meanwhile.
run_with_signals() {
  local pid="" repeater="" status signalled=no
  mpirun_code=127 terminated=no
  trap 'signalled=yes stop_asked=yes; pass_on_stop' USR1
  # mpirun starts with USR1 ignored, as it would die of one that comes before its handler is there.
  (
    trap '' USR1
    exec "${mpirun_line[@]}"
  ) &
  pid=$!
  trap 'signalled=yes terminated=yes; kill -TERM "$pid" 2>/dev/null' TERM
  pass_on_stop
  while true; do
    signalled=no
    wait "$pid" # a signal ends the wait, not mpirun
    status=$?
    # 127: an earlier wait has told the exit code.
    if ((status != 127)); then mpirun_code=$status; fi
    if [[ $signalled == no ]]; then break; fi
  done
  trap - USR1 TERM
  if [[ -n $repeater ]]; then kill "$repeater" 2>/dev/null; fi
}

# Once mpirun runs, starts to ask it to stop, if that was asked for; at most once.
pass_on_stop() {
  if [[ $stop_asked == yes && -n $pid && -z $repeater ]]; then
    repeat_stop "$pid" &
    repeater=$!
  fi
}

# Asks the ranks to stop until mpirun ends: those that are still importing ignore the first request.
repeat_stop() {
  say "asked to stop; the ranks save and leave"
  sleep 1 # if it came at once, $1 is not yet mpirun, and would die of it
  while kill -USR1 "$1" 2>/dev/null; do sleep 10; done
}

# Decides, says and does what follows an attempt; ends the script with its exit code.
# $1: train or detect. $2: the run or output. $3: number of the attempt before. $4: what was saved
# before. $5: mpirun's exit code.
end_attempt() {
  local kind=$1 directory=$2 attempt_before=$3 saved_before=$4 code=$5 reason progress=no
  read_outcome "$directory"
  if ((outcome[0] > attempt_before)); then
    code=${outcome[1]} reason=${outcome[2]}
    say "attempt ${outcome[0]}: $reason (exit $code) ${outcome[3]}"
  else
    reason=$(reason_of_code "$code")
    say "no outcome of this attempt; mpirun ended with $code: $reason"
  fi
  if (($(saved "$kind" "$directory") > saved_before)); then progress=yes; fi
  local ended_by_slurm=$terminated decision
  case $(job_state) in
    RUNNING) ;;
    "") ended_by_slurm=unknown ;;
    *) ended_by_slurm=yes ;;
  esac
  decision=$(decide "$reason" "$progress" "${SLURM_RESTART_COUNT:-0}" "$HVDYOLO_MOST_RESTARTS" "$ended_by_slurm")
  say "$decision"
  if [[ $decision == "requeue"* ]]; then
    ask_slurm requeue "$(job_to_requeue)" || say "scontrol requeue failed; the same sbatch command goes on."
  fi
  exit "$code"
}

# "requeue: …" or "no requeue: …". $1: reason. $2: whether more is saved than before. $3: restarts so
# far. $4: most restarts. $5: whether SLURM is ending the job: yes, no or unknown.
decide() {
  local reason=$1 progress=$2 restarts=$3 most=$4 ended_by_slurm=$5
  case $reason in
    preempted | stalled | died) ;;
    *)
      printf 'no requeue: %s' "$reason"
      return
      ;;
  esac
  if [[ $ended_by_slurm == yes ]]; then
    # A cancelled job must stay cancelled; one that was preempted this way SLURM requeues itself.
    printf 'no requeue: %s, as SLURM ends the job' "$reason"
  elif [[ $ended_by_slurm == unknown ]]; then
    printf 'no requeue: %s, as SLURM does not tell whether it ends the job' "$reason"
  elif [[ $progress != yes ]]; then
    printf 'no requeue: %s, and nothing was saved in this attempt' "$reason"
  elif ((restarts >= most)); then
    printf 'no requeue: %s, after %d restarts of at most %d' "$reason" "$restarts" "$most"
  else
    printf 'requeue: %s, restart %d of at most %d' "$reason" $((restarts + 1)) "$most"
  fi
}

# The reason of an attempt that left no outcome: it ended before it owned the run, or it died.
reason_of_code() {
  case $1 in
    0) printf 'done' ;;
    "$USAGE") printf 'usage' ;;
    "$DATA") printf 'data' ;;
    "$STORAGE") printf 'storage' ;;
    "$STOPPED") printf 'preempted' ;;
    "$MISMATCH") printf 'mismatch' ;;
    # 70 included: a rank whose peer was killed ends with it.
    *) printf 'died' ;;
  esac
}

# Sets outcome to attempt, exit code, reason and detail of $1/outcome.json; attempt 0 if there is none.
read_outcome() {
  mapfile -t outcome < <(
    python - "$1/outcome.json" <<'PYTHON'
import json, sys
try:
    with open(sys.argv[1], encoding="utf-8") as stream:
        values = json.load(stream)
    detail = " ".join(values["detail"].split())
    print(int(values["attempt"]), int(values["exit_code"]), values["reason"], detail, sep="\n")
except (OSError, ValueError, KeyError, TypeError, AttributeError):
    print(0)
PYTHON
  )
  if ((${#outcome[@]} == 0)); then outcome=(0); fi # Python itself did not start
}

# How much of the work is safe: step and epoch of the last checkpoint, added up, for an epoch can be
# over without another step; or the number of finished parts.
saved() {
  local kind=$1 directory=$2 latest="" epoch parts
  if [[ $kind == train ]]; then
    if [[ -r $directory/checkpoints/LATEST ]]; then latest=$(<"$directory/checkpoints/LATEST"); fi
    epoch=$(grep -o '"epoch": *[0-9]*' "$directory/checkpoints/$latest/state.json" 2>/dev/null || true)
    latest=${latest//[^0-9]/} epoch=${epoch//[^0-9]/}
    printf '%d' "$((10#${latest:-0} + 10#${epoch:-0}))"
  else
    parts=$(find "$directory/parts" -name 'part-*.jsonl' 2>/dev/null | wc -l)
    printf '%d' "$parts"
  fi
}

# RUNNING, unless SLURM is already ending the job; empty if it does not tell.
job_state() {
  local text
  text=$(ask_slurm show job "$(job_to_requeue)") && sed -n 's/^ *JobState=\([A-Z_]*\).*/\1/p' <<<"$text"
}

# scontrol, a few times: the controller of a large cluster is often too busy to answer.
ask_slurm() {
  local try
  for try in 1 2 3 4; do
    if ((try > 1)); then sleep 10; fi
    if scontrol "$@"; then return; fi
  done
  return 1
}

# An array's task is requeued under its own name; its job number would requeue another task.
job_to_requeue() {
  if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
    printf '%s_%s' "$SLURM_ARRAY_JOB_ID" "$SLURM_ARRAY_TASK_ID"
  else
    printf '%s' "$SLURM_JOB_ID"
  fi
}

# Value of option $1 among the other arguments, as "--run DIR" or "--run=DIR"; the last one counts.
option_value() {
  local name=$1 value=""
  shift
  while (($# > 0)); do
    case $1 in
      "$name") value=${2:-} ;;
      "$name="*) value=${1#*=} ;;
    esac
    shift
  done
  printf '%s' "$value"
}
