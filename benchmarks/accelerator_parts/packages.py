"""The packages that the command needs, and how to bring missing ones to a machine without a network."""

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Sequence

NEEDED = {
    "annotated_types": "annotated_types",
    "flax": "flax",
    "jax": "jax",
    "jaxtyping": "jaxtyping",
    "ml_dtypes": "ml_dtypes",
    "numpy": "numpy",
    "optax": "optax",
    "orbax.checkpoint": "orbax-checkpoint",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "rich": "rich",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "typing_extensions": "typing_extensions",
    "tyro": "tyro",
}
"""Module -> distribution, for the dependencies that this project names. Those name their own dependencies in turn."""

WHEELS = "wheels"
_GLIBC = ("2_28", "2_27", "2_17")


def missing() -> list[str]:
    """The distributions that are not installed here."""
    return [distribution for module, distribution in NEEDED.items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that the module is in is missing
        return False


def how_to_bring(distributions: Sequence[str]) -> str:
    """The two commands, for this machine's Python and processor: one for a machine with a network, one for this one."""
    names = " ".join(distributions)
    machine = platform.machine()
    platforms = " ".join(f"--platform manylinux_{version}_{machine}" for version in _GLIBC)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join(
        (
            f"not installed here: {', '.join(distributions)}",
            "On a machine with a network, in the clone:",
            f"    python3 -m pip download --only-binary=:all: --python-version {version} {platforms} -d {WHEELS} {names}",
            f"Carry the folder {WHEELS} here, and then:",
            f"    python3 -m pip install --no-index --find-links {WHEELS} {names}",
        )
    )


def imported() -> list[str]:
    """The distributions whose modules this process has imported, without Python's own."""
    found = importlib.metadata.packages_distributions()
    modules = {name.partition(".")[0] for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)}
    # A namespace package, such as Google's, belongs to many distributions; a module's name does not say which.
    return sorted({found[name][0] for name in modules if len(set(found.get(name, ()))) == 1})
