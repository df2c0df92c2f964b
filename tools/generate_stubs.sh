#!/usr/bin/env bash
# Generates the Python modules of protos/ below the folder given (client, for the committed ones).
# PYTHON names an interpreter of an environment with the dev extra; default: the one of .venv.
set -euo pipefail
output=$(realpath "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
# protoc looks for its mypy plugins on the PATH.
PATH=$(dirname "$python"):$PATH
"$python" -m grpc_tools.protoc -I protos \
    --python_out="$output" --grpc_python_out="$output" --mypy_out=quiet:"$output" --mypy_grpc_out=quiet:"$output" \
    pagewire/v1/inference.proto pagewire/v1/shard.proto
