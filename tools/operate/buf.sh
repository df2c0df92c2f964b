#!/usr/bin/env bash
# Installs buf, which lints protos and finds breaking changes, into .operate/buf.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=1.75.0
buf=.operate/buf/node_modules/.bin/buf
if [ -x "$buf" ] && [ "$("$buf" --version)" = "$version" ]; then exit 0; fi
if ! command -v npm >/dev/null; then tools/apt_packages.sh npm; fi
npm install --no-fund --no-audit --prefix .operate/buf "@bufbuild/buf@$version"
"$buf" --version
