"""Failures of the device that a user can do something about, told apart from bugs: too little memory, and a platform that is not there."""

import contextlib
import sys

from und3rstand_jax.support.text import one_line

_LESS = "use a smaller image size or batch, fewer layers, or bfloat16"


def device_fault(error: BaseException) -> str | None:
    """What is wrong with the device, and what to do, in one line; None if an exception says nothing of the kind.

    Programs get the exceptions as they are, MemoryError and jax.errors.JaxRuntimeError: only commands ask here.
    """
    if isinstance(error, MemoryError):
        return f"out of memory{f': {one_line(error)}' if str(error) else ''}; {_LESS}"
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        said = str(error).partition("RESOURCE_EXHAUSTED")[2].lstrip(": ").split("\n")[0]
        return f"the device is out of memory: {one_line(said).rstrip('.')}; {_LESS}"
    # What JAX raises where a platform is missing differs from one to the other, down to a bare AssertionError.
    if isinstance(error, RuntimeError | AssertionError):
        return _missing_platform()
    return None


def _missing_platform() -> str | None:
    jax = sys.modules.get("jax")
    named = jax.config.jax_platforms if jax is not None else None
    if jax is None or not named:
        return None
    try:
        jax.devices()
        return None
    except (RuntimeError, AssertionError):
        pass
    # The process ends with this line, so JAX may choose anew. A TPU is not looked for: its library would say much, and take its time.
    for found in ("cuda", "rocm", "cpu"):
        jax.config.update("jax_platforms", found)
        with contextlib.suppress(RuntimeError, AssertionError):
            jax.devices()
            break
    return f"JAX_PLATFORMS names {named}, which JAX cannot use on this machine; there is {found}: set JAX_PLATFORMS={found}, or unset it"
