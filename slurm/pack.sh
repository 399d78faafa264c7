#!/usr/bin/env bash
# Packs a dataset; the same arguments as `hvdyolo pack`, and the same command goes on where it was:
#
#   sbatch --nodes=2 slurm/pack.sh --source coco --root COCO --out PACKED
#
# A rank decodes on all the cores that it may use, so one rank a node is enough.
#
#SBATCH --job-name=hvdyolo-pack
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -uo pipefail

# SLURM runs a copy of this file: what lies beside the original is found by the job's record.
here=$(dirname -- "${BASH_SOURCE[0]}")
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  command=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s///p;q}')
  here=${command%%/pack.sh*}
  if [[ ! -r $here/common.sh ]]; then here=${SLURM_SUBMIT_DIR:-.}; fi
  if [[ ! -r $here/common.sh ]]; then here=${SLURM_SUBMIT_DIR:-.}/slurm; fi
fi
# shellcheck source=slurm/common.sh
source "$here/common.sh" || exit 2

prepare_site "$here"
run_once hvdyolo pack "$@"
