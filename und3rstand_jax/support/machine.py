"""What a result was computed on: the device and the versions of what computed it.

What the C library keeps of freed memory.
"""

import ctypes
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


def give_back_freed_memory() -> None:
    """Returns freed memory to the system, where the C library is glibc, which keeps it otherwise.

    Loading a backbone frees about as much as it holds; kept, that would lie beside everything a step needs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
