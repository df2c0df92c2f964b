#!/usr/bin/env bash
# Installs those of the named Debian packages that are missing, as root or by sudo. Says what is missing if it cannot.
set -euo pipefail

missing=()
for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo --non-interactive); fi
options=(-qq --option DPkg::Lock::Timeout=600)
export DEBIAN_FRONTEND=noninteractive
if ! { "${as_root[@]}" apt-get "${options[@]}" update &&
    "${as_root[@]}" apt-get "${options[@]}" install --yes --no-install-recommends "${missing[@]}"; }; then
    echo "cannot install ${missing[*]} by apt-get" >&2
    exit 1
fi
