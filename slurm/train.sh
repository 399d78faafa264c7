#!/usr/bin/env bash
# Trains; the same arguments as `hvdyolo train`, and the same command resumes:
#
#   sbatch --nodes=4 slurm/train.sh --config my.yaml --data PACKED --run RUN
#
# One rank a GPU: sbatch --gpus-per-node=4 --ntasks-per-node=4 --cpus-per-task=8 --nodes=4 slurm/train.sh …
#
#SBATCH --job-name=hvdyolo-train
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
  here=${command%%/train.sh*}
  if [[ ! -r $here/common.sh ]]; then here=${SLURM_SUBMIT_DIR:-.}; fi
  if [[ ! -r $here/common.sh ]]; then here=${SLURM_SUBMIT_DIR:-.}/slurm; fi
fi
# shellcheck source=slurm/common.sh
source "$here/common.sh" || exit 2

remember_stop
prepare_site "$here"
run_resumable train "$(option_value --run "$@")" hvdyolo train "$@"
