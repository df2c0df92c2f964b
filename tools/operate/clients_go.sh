#!/usr/bin/env bash
# Installs the packages of Debian that examples/clients/go is built with.
set -euo pipefail
cd "$(dirname "$0")/../.."
# protobuf 1.5 is named so that apt does not take 1.3, which the packages accept as well: it compiles, and then the
# first message that is received panics.
tools/apt_packages.sh make golang-go golang-google-grpc-dev golang-google-genproto-dev golang-google-protobuf-dev \
    golang-github-golang-protobuf-1-5-dev protobuf-compiler protoc-gen-go-1-5 protoc-gen-go-grpc
