"""Symbolic links in a checkpoint: followed inside its folder and into the hub cache that contains it, refused elsewhere.

A checkpoint may come from a stranger. A link out of it would bring a private file into whatever is made from it next.
"""

import os
from pathlib import Path

from und3rstand_jax.support.errors import CheckpointError


def check_link(path: Path, root: Path) -> None:
    """Refuses a path of the checkpoint `root` that leads out of it.

    The hub's client keeps a repository as `snapshots/COMMIT/NAME`, links to `blobs/HASH` beside `snapshots`: these links are allowed.

    Raises:
        CheckpointError: the path leads out; the message names it.
    """
    base = Path(os.path.realpath(root))
    real = Path(os.path.realpath(path))
    if real.is_relative_to(base):
        return
    snapshots = next((parent for parent in base.parents if parent.name == "snapshots"), None)
    if snapshots is not None and real.parent == snapshots.parent / "blobs":
        return
    raise CheckpointError(f"{path} is a link that leads out of the checkpoint, to {real}, and is not followed; put a copy in its place")
