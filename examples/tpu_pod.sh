#!/usr/bin/env bash
# Probes on a TPU slice of several hosts, from your own machine: ./examples/tpu_pod.sh NAME ZONE ADDRESS-OF-THE-CLONE
# All hosts run the same command and find each other. Given again, it goes on where it was.
set -euo pipefail
name=$1 zone=$2 clone=$3

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

on_all_hosts "[ -d und3rstand_jax ] || git clone --depth 1 '$clone' und3rstand_jax"
on_all_hosts "cd und3rstand_jax && python3 -m venv .venv && .venv/bin/pip install --quiet '.[train,tpu]'"
# The checkpoint is downloaded and converted on every host, once. Only the first host writes the run's folder.
on_all_hosts "cd und3rstand_jax && .venv/bin/python -m train --config examples/probes.yaml --distributed --batch-size 64 --out runs/tpu_pod"
