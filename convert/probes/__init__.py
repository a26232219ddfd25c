"""From the tensor names and shapes of an unknown probe checkpoint to its config: see `convert.probes.plan`."""
