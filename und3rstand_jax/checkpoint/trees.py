"""Parameter trees on disk, written with Orbax and read several leaves at a time, and their flat form: path -> leaf.

Orbax's v1 interface cannot write them (as of 0.12.8): its `save` waits for all hosts, whatever its options say, and puts the leaves
into a subfolder of the folder it is given.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from und3rstand_jax.checkpoint.leaves import StoredLeaf
from und3rstand_jax.support.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import orbax.checkpoint

T = TypeVar("T")

Tree = dict[str, Any]
"""A parameter tree: nested dicts of arrays."""

# Orbax encodes an array chunk by chunk; in one chunk, the largest would take twice its size again while it is written.
_CHUNK_BYTES = 32 * 2**20


def check_name(folder: Path) -> None:
    """Refuses a folder in which no tree can be written, before any work is done.

    Raises:
        OutputError: its name has bytes that are not UTF-8.
    """
    try:
        str(folder.resolve()).encode()
    except UnicodeEncodeError:
        raise OutputError(f"{folder} is not UTF-8, which Orbax needs; choose another --out") from None


def write_tree(path: Path, tree: Mapping[str, Any]) -> dict[str, str]:
    """Writes a nested dict of arrays with Orbax, and computes their digests at the same time.

    JAX arrays are written without a copy; NumPy arrays are copied first.

    Returns:
        Path of every leaf -> its `leaf_digest`.

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
    with ThreadPoolExecutor(1) as beside:
        digests = {path: beside.submit(leaf_digest, path, leaf) for path, leaf in flatten(dict(tree)).items()}
        try:
            with _without_word_of_merging(), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
                checkpointer.save(path.resolve(), args=ocp.args.PyTreeSave(tree, save_args=chunked))
        except ValueError as error:  # how TensorStore reports the system's error
            raise OSError(" ".join(str(error).split())) from error
        return {path: digest.result() for path, digest in digests.items()}


@contextlib.contextmanager
def _without_word_of_merging() -> Iterator[None]:
    """Silences Orbax's warning that there is no database to merge, which is expected: trees are written as a folder per leaf."""

    def says_something_else(record: logging.LogRecord) -> bool:
        return "Skipping merge of OCDBT" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(says_something_else)
    try:
        yield
    finally:
        logger.removeFilter(says_something_else)


def leaf_digest(path: str, leaf: Any) -> str:
    """SHA-256 of a leaf's path, type, shape and values, the values in C order and in their in-memory representation."""
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{path} {array.dtype.name} {array.shape}\n".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)  # without the interpreter lock
    return digest.hexdigest()


def read_leaves(
    leaves: Collection[StoredLeaf],
    use: Callable[[StoredLeaf, np.ndarray], T],
    failed: Callable[[StoredLeaf, CheckpointError], T] | None = None,
) -> dict[str, T]:
    """Path -> the result of `use` on each leaf's values; several are read at a time, and `use` runs while others are read.

    For a leaf that cannot be read, the result is that of `failed`, so that the others are still read.

    Raises:
        CheckpointError: without `failed`, values cannot be read, or `use` raises it.
    """

    def made_of(leaf: StoredLeaf) -> T:
        try:
            return use(leaf, leaf.read())
        except CheckpointError as error:
            if failed is None:
                raise
            return failed(leaf, error)

    # The largest first: what is left at the end keeps all threads busy.
    ordered = sorted(leaves, key=lambda leaf: -leaf.nbytes)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        made = dict(zip((leaf.path for leaf in ordered), pool.map(made_of, ordered), strict=True))
    return {leaf.path: made[leaf.path] for leaf in leaves}


def single_process_options() -> "orbax.checkpoint.options.MultiprocessingOptions":
    """Lets this process read or write alone: in a distributed run, Orbax would wait for all other processes to do so too."""
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
