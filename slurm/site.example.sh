# shellcheck shell=bash disable=SC2034
# Copy this to site.sh beside it and edit: the one file that tells the batch scripts about a site.
# Without it they use .venv of the checkout they lie in, or else what `hvdyolo` on PATH is.

# Modules, as the environment was built with:
# module purge
# module load gcc openmpi cuda

# Where bin/hvdyolo is: a virtual environment, or a conda environment's folder.
# HVDYOLO_ENVIRONMENT=/project/hvdyolo/.venv

# The network between nodes, where Open MPI or NCCL picks the wrong one (`ip -brief address`):
# HVDYOLO_INTERFACE=ib0

# More for mpirun, a word each:
# HVDYOLO_MPIRUN_ARGUMENTS=(--mca pml ucx -x UCX_TLS)

# How often a job may be started again, preemptions and failed nodes together.
# HVDYOLO_MOST_RESTARTS=20

# How long ranks may take to save after a SIGTERM. A job that ends with an error waits twice as long.
# HVDYOLO_SECONDS_TO_SAVE=10
