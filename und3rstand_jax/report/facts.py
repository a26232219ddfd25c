"""Where a report comes from: its checkpoint."""

from typing import Any

from und3rstand_jax.checkpoint import CheckpointInfo

# What only the way back to PyTorch needs, a line a tensor.
_LEFT_OUT = ("leaves", "unused", "second_names", "metadata", "config")


def checkpoint_facts(name: str, info: CheckpointInfo) -> dict[str, Any]:
    """Of backbone and probes: source, revision, sha256, what was read, inferred or defaulted, and how probes were trained."""
    parts = {
        part: {key: value for key, value in provenance.items() if key not in _LEFT_OUT} for part, provenance in info.provenance.items()
    }
    return {"path": name, **parts}
