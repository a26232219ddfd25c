"""Device failures that a user can fix, as opposed to bugs: too little memory, or a missing platform."""

import contextlib
import sys

from und3rstand_jax.support.text import one_line

_LESS = "use a smaller image size or batch, fewer layers, or bfloat16"


def device_fault(error: BaseException) -> str | None:
    """One line that says what is wrong with the device and what to do; None if the exception is not such a failure.

    Only the commands use this. Programs get MemoryError and jax.errors.JaxRuntimeError unchanged.
    """
    if isinstance(error, MemoryError):
        return f"out of memory{f': {one_line(error)}' if str(error) else ''}; {_LESS}"
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        said = str(error).partition("RESOURCE_EXHAUSTED")[2].lstrip(": ").split("\n")[0]
        return f"the device is out of memory: {one_line(said).rstrip('.')}; {_LESS}"
    # What JAX raises for a missing platform depends on the platform; it can be a bare AssertionError.
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
    # The process ends with this message, so JAX's platform may be changed. TPUs are not tried: their library is slow and verbose.
    for found in ("cuda", "rocm", "cpu"):
        jax.config.update("jax_platforms", found)
        with contextlib.suppress(RuntimeError, AssertionError):
            jax.devices()
            break
    return f"JAX_PLATFORMS names {named}, which JAX cannot use on this machine; there is {found}: set JAX_PLATFORMS={found}, or unset it"
