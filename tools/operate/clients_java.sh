#!/usr/bin/env bash
# Builds examples/clients/java with Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
# libnetty-java and libperfmark-java are what libgrpc-java needs and does not depend on.
if ! command -v javac >/dev/null; then tools/apt_packages.sh default-jdk-headless; fi
tools/apt_packages.sh make libgrpc-java libgoogle-common-protos-java libgeronimo-annotation-1.3-spec-java libguava-java \
    libnetty-java libperfmark-java libprotobuf-java protobuf-compiler protobuf-compiler-grpc-java-plugin
make -C examples/clients/java
