"""How quick tests' programs are compiled, beyond leaving most optimisations out.

XLA's older code for loops that it has fused takes the compiler about half as long as its new one, and what it makes differs in rounding
alone. No setting of JAX chooses it but XLA_FLAGS, which hold for a whole process, and tests of programs that are compiled as users compile
them run in the same one. Newer versions of XLA have the new code alone: they take longer.
"""

import functools
from typing import Any

import jax
from jax._src import compiler

OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
_options_of_jax = getattr(compiler, "get_compile_options", None)  # JAX's own, and only a matter of speed: without it, tests take longer


@functools.cache
def install() -> None:
    """For every program that this process compiles for a CPU while most optimisations are off."""
    known = _known()
    if _options_of_jax is None or not known:
        return

    def options_of_tests(*given: Any, **named: Any) -> Any:
        options, backend = _options_of_jax(*given, **named), named.get("backend")
        if jax.config.read("jax_disable_most_optimizations") and (backend is None or backend.platform == "cpu"):
            options.env_option_overrides = [*options.env_option_overrides, *known]
        return options

    compiler.get_compile_options = options_of_tests


def flags() -> str:
    """The same as XLA_FLAGS, for processes that tests start whose programs are all to be compiled so."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in _known())


@functools.cache
def _known() -> tuple[tuple[str, bool | int], ...]:
    """Of the options those that this version of XLA has."""
    return tuple(option for option in OPTIONS.items() if _is_known(*option))


def _is_known(name: str, value: bool | int) -> bool:
    try:
        jax.jit(lambda x: x).lower(1.0).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True
