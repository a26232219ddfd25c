"""Compiled programs are kept for the session, so that a program which several tests or processes run is compiled once."""

import os
import shutil
import tempfile

import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_made: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Before the workers of pytest-xdist start, which inherit the environment, and before JAX reads it."""
    if _CACHE not in os.environ:
        _made.append(tempfile.mkdtemp(prefix="und3rstand_jax_programs_"))
        os.environ[_CACHE] = _made[0]
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def pytest_unconfigure() -> None:
    """By the process that made it."""
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)
