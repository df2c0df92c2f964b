#!/usr/bin/env bash
# Installs Chromium, and Playwright, which drives it, into .operate/browser.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=1.65.2
if ! command -v chromium >/dev/null; then tools/apt_packages.sh chromium; fi
if [ ! -d ".operate/browser/playwright-$version.dist-info" ]; then
    rm -rf .operate/browser
    .venv/bin/python -m pip install --quiet --target .operate/browser "playwright==$version"
fi
chromium --version
