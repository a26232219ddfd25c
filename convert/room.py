"""Whether a result may go where it is to go: apart from what it is made of, on a disk with room for it."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from und3rstand_jax.errors import UserError


def check_apart(out: Path, places: Iterable[Path]) -> None:
    """Refuses an output folder that is a source, lies in one, or holds one: replacing it would take the source with it.

    Raises:
        UserError: it is one of these.
    """
    folder = out.resolve()
    for place in places:
        source = place.expanduser().resolve()
        if folder == source or folder.is_relative_to(source):
            raise UserError(f"the output folder {out} is, or is in, the source {place}; choose one elsewhere")
        if folder.is_dir() and source.is_relative_to(folder):
            raise UserError(f"the output folder {out} holds the source {place}; choose one elsewhere")


def check_room(out: Path, needed: int) -> None:
    """Refuses, before any work, a disk that has fewer than `needed` bytes left.

    Raises:
        UserError: it has.
    """
    existing = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"disk full: {existing} has {_size(free)} free, and the result takes about {_size(needed)}; free some, or choose another --out"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
