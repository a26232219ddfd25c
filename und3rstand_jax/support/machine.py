"""The machine: what a result was computed on, and memory to return to the system."""

import ctypes
import sys
from pathlib import Path

import jax

from und3rstand_jax.support.versions import package_version

_PACKAGES = (
    *("und3rstand_jax", "jax", "jaxlib", "flax", "orbax-checkpoint"),
    *("numpy", "scipy", "opencv-python-headless", "pillow", "matplotlib"),
)


def machine_facts() -> dict[str, str | dict[str, str]]:
    """The `device` and the `versions` of the packages that compute, to record with a result as JSON."""
    installed = {package: version for package in _PACKAGES if (version := package_version(package)) is not None}
    return {
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "versions": {"python": sys.version.split()[0], **installed},
    }


def free_memory() -> int | None:
    """Free memory of JAX's first device, in bytes; on a CPU, that of the machine. None if it cannot be determined."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(available[0]) * 1024 if available else None


def give_back_freed_memory() -> None:
    """Returns freed memory to the system; glibc, the C library of most Linux systems, would keep it.

    Loading a backbone frees about as much memory as the backbone takes. Kept, it would add to what a training step needs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
