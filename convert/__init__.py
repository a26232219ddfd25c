"""Conversion of PyTorch checkpoints of DUSt3R and its probes to JAX parameter trees, and back: `python -m convert`."""
