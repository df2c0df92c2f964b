#!/usr/bin/env bash
# Unpacks Debian's Prometheus with promtool into .operate/prometheus. It is not installed: no service, no user.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=.operate/prometheus
if [ -x "$folder/usr/bin/promtool" ] && [ -x "$folder/usr/bin/prometheus" ]; then exit 0; fi
mkdir -p "$folder"
exec 9>"$folder/lock" # test workers may ask for it at the same time
flock 9
download() { (cd "$folder" && apt-get download -qq prometheus); }
# Package lists are empty on a fresh machine, and may name packages that no longer exist on an old one.
download || { apt-get update -qq && download; }
dpkg-deb --extract "$folder"/prometheus_*.deb "$folder"
rm "$folder"/prometheus_*.deb
"$folder/usr/bin/promtool" --version
