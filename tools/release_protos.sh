#!/usr/bin/env bash
# Keeps the protos as they are now as protos/released.binpb: what later versions must stay compatible with.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m grpc_tools.protoc -I protos --include_imports --descriptor_set_out=protos/released.binpb \
    pagewire/v1/inference.proto pagewire/v1/shard.proto
