#!/usr/bin/env bash
# Probes on all GPUs of this machine: one process, every GPU takes its share of the batch. Given again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

# With `plan`, what a GPU takes, before anything is trained: memory by kind, largest batch, time.
if [[ "${1:-}" == "plan" ]]; then
    exec python -m train plan --topology gpu --config examples/probes.yaml --batch-size 32
fi
# Compiling takes a minute or two on a GPU; compiled programs are kept for the next start.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/jax_programs}"
exec python -m train --config examples/probes.yaml --batch-size 32 --out runs/one_machine
