"""Trees read by Orbax itself, which knows nothing of this project: what it writes stays readable without it."""

from pathlib import Path
from typing import Any


def read_tree(path: Path) -> Any:
    """A tree as NumPy arrays, whatever devices it was written on."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(path.resolve()).item_metadata
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        return checkpointer.restore(path.resolve(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
