#!/usr/bin/env bash
# Builds the site of docs/ into build/site. Warnings are errors, links that lead nowhere among them.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! .venv/bin/python -c 'import furo, myst_parser, sphinx, sphinx_copybutton' 2>/dev/null; then
    echo "Installing what builds the site"
    .venv/bin/python -m pip install --quiet --no-input -c constraints.txt -e '.[docs]'
fi
.venv/bin/python -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --quiet docs build/site
echo "The site is in build/site."
