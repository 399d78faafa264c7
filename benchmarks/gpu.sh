#!/usr/bin/env bash
# Everything that is to be measured and tested on a machine with NVIDIA GPUs, without network, in less than 10 minutes,
# Horovod's build included. All trainings stay on the first GPU from the beginning, in about 60 GB at 32 images a GPU,
# and take 1 GB of /dev/shm.
#
#   benchmarks/gpu.sh [--batch IMAGES]
#
# The environment is the active one, or .venv; its torch is built with CUDA. Horovod is built with NCCL by
# scripts/build_horovod.sh, which takes a kept wheel from HVDYOLO_CACHE (a folder that `make wheelhouse` filled will do)
# or the source that HOROVOD_SDIST names. Photographs: HVDYOLO_TEST_DATA, as for the tests.
# Everything printed also goes to benchmarks/results/DATE-gpu.txt.
set -uo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$ROOT" || exit 74
results=benchmarks/results/$(date +%F)-gpu.txt
readonly results
status=0

if [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then BIN=${VIRTUAL_ENV:-$CONDA_PREFIX}/bin; else BIN=$ROOT/.venv/bin; fi
readonly BIN
if ! "$BIN/python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
  echo "gpu.sh: $BIN/python has no torch that finds a GPU." >&2
  exit 2
fi
# In a container the only user is root.
if (($(id -u) == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

# Each to its end, so that one run shows all there is.
step() {
  printf '\n== %s\n' "$*"
  "$@" || status=1
}

everything() {
  local gpus
  gpus=$("$BIN/python" -c 'import torch; print(torch.cuda.device_count())')
  date -u
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  step scripts/build_horovod.sh --python "$BIN/python" --device cuda
  step "$BIN/horovodrun" --check-build
  step "$BIN/python" -m pytest -q -m gpu tests/unit
  # Through NCCL, which wants a GPU for each rank; of one rank too.
  step "$BIN/mpirun" -np "$gpus" --bind-to none "$BIN/python" -m pytest -q -p no:cacheprovider -m gpu tests/parallel
  # On CPU tensors, by this very build: a batch there has four images, so no more than four ranks.
  step env CUDA_VISIBLE_DEVICES= "$BIN/mpirun" -np 2 --bind-to none \
    "$BIN/python" -m pytest -q -p no:cacheprovider -m "not gpu" tests/parallel
  step "$BIN/python" benchmarks/train_gpu.py "$@"
  return "$status"
}

everything "$@" 2>&1 | tee "$results"
exit "${PIPESTATUS[0]}"
