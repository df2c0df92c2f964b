#!/usr/bin/env bash
# Installs OpenAI's client for JavaScript, which tests/clients/node uses.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v node >/dev/null; then tools/apt_packages.sh nodejs; fi
if ! command -v npm >/dev/null; then tools/apt_packages.sh npm; fi
mkdir -p .operate
exec 9>.operate/openai_node.lock # two runs at once would take each other's packages away
flock 9
cd tests/clients/node
if [ ! node_modules/.package-lock.json -nt package-lock.json ]; then npm ci --no-fund --no-audit; fi
