#!/usr/bin/env bash
# Installs the packages of Debian that examples/clients/java is built with.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v javac >/dev/null; then tools/apt_packages.sh default-jdk-headless; fi
# libgrpc-java needs more than it depends on: netty, perfmark, and tcnative for TLS.
tools/apt_packages.sh make libgrpc-java libgoogle-common-protos-java libgeronimo-annotation-1.3-spec-java libguava-java \
    libnetty-java libnetty-tcnative-java libnetty-tcnative-jni libperfmark-java libprotobuf-java \
    protobuf-compiler protobuf-compiler-grpc-java-plugin
