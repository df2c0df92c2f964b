#!/usr/bin/env bash
# Builds examples/clients/ruby with Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools/apt_packages.sh make ruby ruby-grpc protobuf-compiler protobuf-compiler-grpc
make -C examples/clients/ruby
