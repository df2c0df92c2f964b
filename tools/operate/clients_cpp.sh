#!/usr/bin/env bash
# Builds examples/clients/cpp with Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools/apt_packages.sh make g++ pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
make -C examples/clients/cpp
