#!/usr/bin/env bash
# Installs the packages of Debian that examples/clients/ruby is built with.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools/apt_packages.sh make ruby ruby-grpc protobuf-compiler protobuf-compiler-grpc
