#!/usr/bin/env bash
# Runs every static check, all of them even if one fails, and fails if any did.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()

check() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}

check "format" .venv/bin/ruff format --check --quiet .
check "lint" .venv/bin/ruff check --quiet .
check "types" .venv/bin/mypy
check "size limits" .venv/bin/python tools/check_structure.py
check "generated pages" .venv/bin/python tools/generate_docs.py --check
check "values of the chart" .venv/bin/python tools/chart_readme.py --check
check "imports and protos" .venv/bin/python -m pytest tests/test_structure.py tests/protos
# buf as tools/operate/buf.sh installs it, or one on the PATH.
PATH=$PWD/.operate/buf/node_modules/.bin:$PATH
if command -v buf >/dev/null; then
    check "buf lint" buf lint protos
    check "no breaking change since the release" buf breaking protos --against protos/released.binpb
else
    echo "== buf lint, buf breaking: skipped, buf is not installed (tools/operate/buf.sh brings it)"
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "All checks passed."
