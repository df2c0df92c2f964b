#!/usr/bin/env bash
# Runs the tests that need a CUDA device. Arguments go to pytest; WORKERS sets the number of processes, 0: this one alone.
set -euo pipefail
cd "$(dirname "$0")/.."
# Most of the time goes into compiling kernels, on the CPU. A worker needs a core, and 10 GiB of the GPU for the largest
# product in float64.
memory_mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits --id=0 2>/dev/null || echo 0)
workers=$((memory_mib / 10240))
# nproc takes OMP_NUM_THREADS for the number of cores.
num_cores=$(env -u OMP_NUM_THREADS nproc)
if [ "$workers" -gt "$num_cores" ]; then workers=$num_cores; fi
workers=${WORKERS:-$workers}
# What the tests compute beside the GPU is little; threads of several workers would wait for one another.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Neighbours share kernels, so they stay together; a worker that is done takes half of what another has left.
exec .venv/bin/python -m pytest --numprocesses "$workers" --dist worksteal -m gpu "$@"
