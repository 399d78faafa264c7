#!/usr/bin/env bash
# Detects; the same arguments as `hvdyolo detect`, and the same command finishes what is missing:
#
#   sbatch --nodes=8 slurm/detect.sh --weights WEIGHTS --source IMAGES --out OUT
#
# Several such jobs, or an array (--array=1-20), may work at one output.
#
#SBATCH --job-name=hvdyolo-detect
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
# The log goes on when the job is started again.
#SBATCH --open-mode=append
#SBATCH --requeue
# To this script alone, three minutes before the end; on preemption, as soon as SLURM tells.
#SBATCH --signal=B:USR1@180
set -uo pipefail

# SLURM runs a copy of this file: what lies beside the original is found by the job's record.
here=$(dirname -- "${BASH_SOURCE[0]}")
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  command=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s///p;q}')
  here=${command%%/detect.sh*}
  if [[ ! -r $here/common.sh ]]; then here=${SLURM_SUBMIT_DIR:-.}; fi
  if [[ ! -r $here/common.sh ]]; then here=${SLURM_SUBMIT_DIR:-.}/slurm; fi
fi
# shellcheck source=slurm/common.sh
source "$here/common.sh" || exit 2

remember_stop
prepare_site "$here"
run_resumable detect "$(option_value --out "$@")" hvdyolo detect "$@"
