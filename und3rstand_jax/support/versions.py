"""Versions of installed packages and of this one, which also runs from a clone that is not installed."""

import importlib.metadata


def package_version(name: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def own_version() -> str:
    """The version of this package, "0+unknown" in a clone that is not installed."""
    return package_version("und3rstand_jax") or "0+unknown"
