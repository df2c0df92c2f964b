#!/usr/bin/env bash
# Runs pytest with one worker for each core, up to eight. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
# nproc takes OMP_NUM_THREADS for the number of cores.
num_workers=$(env -u OMP_NUM_THREADS nproc)
if [ "$num_workers" -gt 8 ]; then num_workers=8; fi
# The workers share the cores, so more threads in each would only wait for one another.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest --numprocesses "$num_workers" --dist loadfile "$@"
