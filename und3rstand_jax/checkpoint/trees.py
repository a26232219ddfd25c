"""Parameter trees on disk, written and read with Orbax, and their flat form: path -> leaf."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from und3rstand_jax.support.errors import UserError

# Orbax encodes an array chunk by chunk; whole, the largest would be held in memory two times more while it is written.
_CHUNK_BYTES = 32 * 2**20


def write_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays with Orbax.

    JAX arrays are written without a copy; NumPy arrays are copied first.

    Raises:
        OSError: it cannot be written.
    """
    import jax
    import orbax.checkpoint as ocp

    # One leaf at a time: without a limit, Orbax has a second copy of the whole tree in flight.
    in_flight = max((leaf.nbytes for leaf in jax.tree.leaves(tree)), default=0) + 1
    # A folder a leaf: Orbax's other layout, one database for all, buffers what it writes (0.3 GB at full size).
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=in_flight / 1e9, use_ocdbt=False, **_alone())
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    try:
        with ocp.Checkpointer(handler, **_alone()) as checkpointer:
            checkpointer.save(path.resolve(), args=ocp.args.PyTreeSave(tree, save_args=chunked))
    except ValueError as error:  # what TensorStore makes of the system's error
        raise OSError(" ".join(str(error).split())) from error


def read_tree(path: Path) -> dict[str, Any]:
    """Reads an Orbax tree as NumPy arrays, whatever devices it was written on.

    Raises:
        UserError: the tree is missing or damaged.
    """
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    if not path.is_dir():
        raise UserError(f"{path} is missing; the checkpoint is incomplete: convert it again")
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**_alone()), **_alone()) as checkpointer:
            metadata = checkpointer.metadata(path.resolve()).item_metadata
            if metadata is None:
                raise ValueError("its metadata cannot be read")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
            return checkpointer.restore(path.resolve(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except (ValueError, FileNotFoundError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {reason}); convert it again") from error


def _alone() -> dict[str, Any]:
    """Tells Orbax that this process reads or writes for itself: it would otherwise wait for all others of a distributed run to do so."""
    import jax
    import orbax.checkpoint as ocp

    own = jax.process_index()
    prefix = f"process{own}"
    options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=prefix)
    return {"multiprocessing_options": options}


Tree = dict[str, Any]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Path -> leaf of a nested dict."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, dict) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The nested dict of `flatten`'s paths."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
