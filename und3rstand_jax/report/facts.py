"""Where a report comes from: checkpoint, machine, versions."""

import importlib.metadata
import sys
from typing import Any

import jax

from und3rstand_jax.checkpoint import CheckpointInfo

# What only the way back to PyTorch needs, a line a tensor.
_LEFT_OUT = ("leaves", "unused", "second_names", "metadata", "config")
_PACKAGES = ("und3rstand_jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "scipy", "opencv-python-headless", "matplotlib")


def checkpoint_facts(name: str, info: CheckpointInfo) -> dict[str, Any]:
    """Of backbone and probes: source, revision, sha256, what was read, inferred or defaulted, and how probes were trained."""
    parts = {
        part: {key: value for key, value in provenance.items() if key not in _LEFT_OUT} for part, provenance in info.provenance.items()
    }
    return {"path": name, **parts}


def machine_facts() -> dict[str, Any]:
    """The device, and the versions of what computed the report."""
    versions = {"python": sys.version.split()[0]} | {package: version for package in _PACKAGES if (version := _version(package))}
    return {"device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}", "versions": versions}


def _version(package: str) -> str | None:
    """The version of an installed package; this project may also run from a folder, uninstalled."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
