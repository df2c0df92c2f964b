#!/usr/bin/env bash
# Installs Arize Phoenix, an OTLP trace backend with a REST API, into .operate/phoenix: a separate environment, as
# pagewire needs none of its 200 packages. About 900 MB. Licence: Elastic-2.0, so that it is a tool of tests and never shipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=20.26.1
directory=.operate/phoenix
mkdir -p "$directory"
exec 9>"$directory/lock" # test workers may ask for it at the same time
flock 9
if [ "$(cat "$directory/version" 2>/dev/null)" = "$version" ]; then exit 0; fi

python=$(command -v .venv/bin/python || command -v python3)
"$python" -m venv --clear "$directory/venv"
"$directory/venv/bin/python" -m pip install -q --progress-bar off --no-input "arize-phoenix==$version" || {
    echo "arize-phoenix $version cannot be had from the package index"
    exit 1
}
echo "$version" >"$directory/version"
echo "arize-phoenix $version in $directory"
