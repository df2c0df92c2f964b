#!/usr/bin/env bash
# Installs the packages of Debian that examples/clients/cpp is built with.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools/apt_packages.sh make g++ pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
