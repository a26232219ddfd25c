"""What a result was computed on: the device and the versions of what computed it."""

import importlib.metadata
import sys
from typing import Any

import jax

_PACKAGES = (
    *("und3rstand_jax", "jax", "jaxlib", "flax", "orbax-checkpoint"),
    *("numpy", "scipy", "opencv-python-headless", "pillow", "matplotlib"),
)


def machine_facts() -> dict[str, Any]:
    """As JSON: `device` and `versions`."""
    versions = {"python": sys.version.split()[0]} | {package: version for package in _PACKAGES if (version := _version(package))}
    return {"device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}", "versions": versions}


def _version(package: str) -> str | None:
    """The version of an installed package; this project may also run from a folder, uninstalled."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
