#!/usr/bin/env bash
# Runs every benchmark of pagewire itself, one after the other, on a machine that should do nothing else meanwhile.
# benchmarks/peers.py, which installs other engines, is run by hand. About a quarter of an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
"$python" benchmarks/scheduler.py
"$python" benchmarks/startup.py
"$python" benchmarks/service.py
"$python" benchmarks/tracing.py
"$python" benchmarks/offline.py --dtype float32
"$python" benchmarks/offline.py --dtype float16
