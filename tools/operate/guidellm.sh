#!/usr/bin/env bash
# Installs guidellm, a load generator, into .operate/guidellm (1.5 GB). PyTorch is named for its wheel without CUDA.
set -euo pipefail
exec "$(dirname "$0")/../python_environment.sh" guidellm guidellm==0.8.1 torch==2.13.0
