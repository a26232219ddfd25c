"""Parameter trees on disk, written and read with Orbax, and their flat form: path -> leaf."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from und3rstand_jax.support.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import orbax.checkpoint

Tree = dict[str, Any]
"""A parameter tree: nested dicts of arrays."""

# Orbax encodes an array chunk by chunk; whole, the largest would take twice its size again while it is written.
_CHUNK_BYTES = 32 * 2**20


def check_name(folder: Path) -> None:
    """Refuses, before any work, a folder in which no tree can be written.

    Raises:
        OutputError: its name has bytes that are not UTF-8.
    """
    try:
        str(folder.resolve()).encode()
    except UnicodeEncodeError:
        raise OutputError(f"{folder} is not UTF-8, in which Orbax writes names; choose another --out") from None


def write_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays with Orbax.

    JAX arrays are written without a copy; NumPy arrays are copied first.

    Raises:
        OSError: it cannot be written.
    """
    import jax
    import orbax.checkpoint as ocp

    alone = single_process_options()
    # One leaf at a time: without a limit, Orbax has a second copy of the whole tree in flight.
    in_flight = max((leaf.nbytes for leaf in jax.tree.leaves(tree)), default=0) + 1
    # A folder per leaf: Orbax's other layout, one database for all, buffers what it writes (0.3 GB at full size).
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=in_flight / 1e9, use_ocdbt=False, multiprocessing_options=alone)
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            checkpointer.save(path.resolve(), args=ocp.args.PyTreeSave(tree, save_args=chunked))
    except ValueError as error:  # how TensorStore reports the system's error
        raise OSError(" ".join(str(error).split())) from error


def read_tree(path: Path) -> Tree:
    """Reads an Orbax tree as NumPy arrays, whatever devices it was written on.

    Raises:
        CheckpointError: the tree is missing or damaged.
    """
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    alone = single_process_options()
    if not path.is_dir():
        raise CheckpointError(f"{path} is missing; the checkpoint is incomplete: convert it again")
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone) as checkpointer:
            metadata = checkpointer.metadata(path.resolve()).item_metadata
            if metadata is None:
                raise ValueError("its metadata cannot be read")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
            return checkpointer.restore(path.resolve(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except (ValueError, FileNotFoundError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {reason}); convert it again") from error


def single_process_options() -> "orbax.checkpoint.options.MultiprocessingOptions":
    """Makes this process read or write by itself: in a distributed run, Orbax would wait for all other processes to do so too."""
    import jax
    import orbax.checkpoint as ocp

    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}")


def flatten(tree: Tree) -> dict[str, Any]:
    """Path -> leaf of a nested dict, as in `decoder/norm/scale`."""
    from flax.traverse_util import flatten_dict

    return flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The nested dict of `flatten`'s paths."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(flat, sep="/")
