#!/usr/bin/env bash
# Installs checkov, which scans manifests and Dockerfiles for known mistakes, into .operate/checkov (300 MB, a minute).
set -euo pipefail
cd "$(dirname "$0")/../.."
version=3.3.30
python=$(command -v .venv/bin/python || command -v python3)
mkdir -p .operate
exec 9>.operate/checkov.lock
flock 9
if [ "$(.operate/checkov/bin/checkov --version 2>/dev/null)" = "$version" ]; then exit 0; fi
rm -rf .operate/checkov
"$python" -m venv .operate/checkov
.operate/checkov/bin/pip install -qq --no-input "checkov==$version"
if [ "$(.operate/checkov/bin/checkov --version)" != "$version" ]; then
    echo "checkov $version does not run"
    exit 1
fi
echo "checkov $version in .operate/checkov"
