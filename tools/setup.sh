#!/usr/bin/env bash
# Creates .venv and installs pagewire into it, with one line of progress for each package. Argument: a file to touch
# when all is done. PYTHON names the interpreter to use; otherwise the first suitable one on the PATH is taken.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=$1
log=.venv/setup.log

fail() {
    printf 'pagewire: %s\n' "$@" >&2
    exit 1
}

suitable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed and was not found (tried: ${PYTHON:-python3, python3.13, python3.12, python3.11})." \
        "Install it (Debian, Ubuntu: apt install python3 python3-venv), or set PYTHON=/path/to/python."
}

create_venv() {
    local python
    python=$(find_python)
    echo "Creating .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        fail "'$python -m venv' failed. On Debian and Ubuntu: apt install python3-venv."
    fi
}

# Turns pip's chatter into one short line for each package; everything it says goes to the log.
show_progress() {
    tee "$log" | awk '
        /^ERROR|^error/            { print; fflush(); next }
        /^ *Collecting /           { printf "  %s\n", $2; fflush() }
        /^ *Downloading .*[MG]B\)/ { printf "    downloading %s %s\n", $(NF - 1), $NF; fflush() }
        /^Installing collected/    { print "  installing (this takes a minute or two)"; fflush() }'
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    create_venv
fi

echo "Installing pagewire and what it needs; the first time takes a few minutes (log: $log)"
if ! .venv/bin/python -m pip install --progress-bar off --no-input -c constraints.txt -e '.[all,dev]' 2>&1 | show_progress; then
    tail -n 5 "$log" >&2
    fail "the installation failed; all of its output is in $log."
fi
echo "Compiling the CPU kernels (half a minute)"
.venv/bin/python tools/compile_kernels.py
touch "$stamp"
echo "Ready."
