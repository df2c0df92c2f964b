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
check "list of modules" .venv/bin/python tools/module_list.py --check
check "generated pages" .venv/bin/python tools/generate_docs.py --check
check "imports and protos" .venv/bin/python -m pytest tests/test_structure.py tests/protos
if command -v buf >/dev/null; then
    check "buf lint" buf lint protos
else
    echo "== buf lint: skipped, buf is not installed (npm install --global @bufbuild/buf)"
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "All checks passed."
