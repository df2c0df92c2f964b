#!/usr/bin/env bash
# Installs LiteLLM and LangChain, whose clients are tried on the HTTP front, into .operate/http_clients (430 MB).
set -euo pipefail
exec "$(dirname "$0")/../python_environment.sh" http_clients litellm==1.110.2 langchain-openai==1.7.4 langchain-core==1.8.3
