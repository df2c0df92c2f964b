#!/usr/bin/env bash
# Writes the current protos into protos/released.binpb, with which later versions must stay compatible.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m grpc_tools.protoc -I protos --include_imports --descriptor_set_out=protos/released.binpb \
    pagewire/v1/inference.proto pagewire/v1/shard.proto
