#!/usr/bin/env bash
# Sets up what `make test-operate` needs, each part in .operate/<name>, by the scripts beside this one. A part that
# cannot be set up here is named, and the tests that need it say that they were skipped for it.
set -uo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .operate
for script in tools/operate/*.sh; do
    name=$(basename "$script" .sh)
    if [ "$name" = setup ]; then continue; fi
    echo "== $name"
    "$script" >".operate/$name.log" 2>&1 || echo "could not be set up, see .operate/$name.log: $(tail -n 1 ".operate/$name.log")"
done
