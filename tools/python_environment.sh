#!/usr/bin/env bash
# Makes an environment for a tool in .operate/NAME/venv, of these packages and what they need, unless it is there.
# Arguments: NAME, then packages with their versions.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
directory=.operate/$name
mkdir -p "$directory"
exec 9>"$directory/lock" # test workers may ask for it at the same time
flock 9
if [ "$(cat "$directory/packages" 2>/dev/null)" = "$*" ]; then exit 0; fi
python=$(command -v .venv/bin/python || command -v python3)
rm -f "$directory/packages"
"$python" -m venv --clear "$directory/venv"
"$directory/venv/bin/python" -m pip install -q --progress-bar off --no-input "$@" || {
    echo "$* cannot be had from the package index"
    exit 1
}
echo "$*" >"$directory/packages"
echo "$* in $directory"
