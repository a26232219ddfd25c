"""Names without the wrappers that training adds around a model or its modules: torch.compile's and DistributedDataParallel's."""

from collections.abc import Iterable

from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import listed

_WRAPPERS = ("_orig_mod", "module")


def unwrapped(name: str) -> str:
    """A tensor's name without the components `_orig_mod` and `module`, wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def by_unwrapped_name(names: Iterable[str]) -> dict[str, str]:
    """Name without wrappers -> name.

    Raises:
        CheckpointError: two names differ only in their wrappers.
    """
    found: dict[str, str] = {}
    twice = []
    for name in names:
        other = found.setdefault(unwrapped(name), name)
        if other != name:
            twice.append(f"{other} and {name}")
    if twice:
        raise CheckpointError(
            f"names that differ only in _orig_mod and module: {listed(twice, '; ', most=5)}; expected one copy of the weights, which "
            "--key can choose by the beginning of its names"
        )
    return found
