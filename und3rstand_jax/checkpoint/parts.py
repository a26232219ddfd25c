"""The parts of a converted checkpoint, read and copied: every value that leaves a checkpoint goes through here.

The tree is compared with its config before any value is read, and every value with its digest before it is used.
"""

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from und3rstand_jax.checkpoint.format import REMEDY, CheckpointInfo, unused_file
from und3rstand_jax.checkpoint.leaves import StoredLeaf, StoredTree
from und3rstand_jax.checkpoint.links import check_link
from und3rstand_jax.checkpoint.stored import stored_tree
from und3rstand_jax.checkpoint.trees import Tree, leaf_digest, read_leaves, unflatten
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.files import file_sha256, open_regular

_logger = logging.getLogger(__name__)

_SHOWN = 3
DIFFERS = "values differ from the digest in config.json"

T = TypeVar("T")


class DamageError(CheckpointError):
    """A converted checkpoint is not what was written: something is missing, or differs from its digest or its config."""


def read_part(folder: Path, info: CheckpointInfo, part: str) -> Tree:
    """The tree of "backbone" or "probes" as NumPy arrays, whatever devices it was written on.

    Raises:
        DamageError: a leaf is missing, does not match the config, or differs from its digest.
        CheckpointError: a link in the tree leads out of the checkpoint.
    """
    tree = whole_tree(folder, info, part)
    digests = _digests(folder, info, part)

    def verified(leaf: StoredLeaf, values: np.ndarray) -> np.ndarray:
        if digests is not None and digests.get(leaf.path) != leaf_digest(leaf.path, values):
            raise DamageError(_damage(folder, part, {leaf.path: DIFFERS}))
        return values

    return unflatten(_read(tree, verified))


def copy_part(folder: Path, info: CheckpointInfo, part: str, target: Path, link: bool = False) -> dict[str, str]:
    """Copies a part of a checkpoint, and its unused tensors, into the folder `target` once every value has been verified.

    Args:
        folder: the checkpoint.
        info: its contents.
        part: "backbone" or "probes".
        target: the folder that becomes another checkpoint.
        link: whether to make hard links where the file system allows it. Finished checkpoints are never written to.

    Returns:
        The digests of the part; computed now if the checkpoint has none.

    Raises:
        DamageError, CheckpointError: as in `read_part`.
        OSError: it cannot be written.
    """
    tree = whole_tree(folder, info, part)
    recorded = _digests(folder, info, part)
    digests = _read(tree, lambda leaf, values: leaf_digest(leaf.path, values))
    differing = [path for path in digests if recorded is not None and recorded.get(path) != digests[path]]
    if differing:
        raise DamageError(_damage(folder, part, dict.fromkeys(differing, DIFFERS)))
    for file in dict.fromkeys((*tree.files, *(file for leaf in tree.leaves.values() for file in leaf.files))):
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(file, copy, link)
    return digests | copy_unused(folder, info, part, target, link)


def copy_unused(folder: Path, info: CheckpointInfo, part: str, target: Path, link: bool = False) -> dict[str, str]:
    """`copy_part` for only the tensors that the model never reads: no file and no digest if there are none."""
    file = unused_file(folder, part)
    digest = _unused_digest(folder, info, part)
    if digest is None:
        return {}
    _link_or_copy(file, target / file.name, link)
    return {file.name: digest}


def read_unused(folder: Path, info: CheckpointInfo, part: str) -> dict[str, np.ndarray]:
    """Name -> tensor, for everything in the part's source that its model never reads.

    Raises:
        DamageError: the file is missing, damaged or not the one that was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = unused_file(folder, part)
    if _unused_digest(folder, info, part) is None:
        return {}
    try:
        return load_file(file)
    except SafetensorError as error:
        raise DamageError(_damage(folder, part, {file.name: f"not a safetensors file: {error}"})) from error


def file_digest(file: Path, root: Path) -> str:
    """SHA-256 of a file of the checkpoint `root`.

    Raises:
        CheckpointError: it is a link that leads out of it, or cannot be read.
    """
    check_link(file, root)
    try:
        return file_sha256(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; {REMEDY}") from error


def whole_tree(folder: Path, info: CheckpointInfo, part: str) -> StoredTree:
    """The tree of a part, checked against its config but not read.

    Raises:
        DamageError: something is missing or has another name, shape or type, or is a link out of the checkpoint.
    """
    try:
        tree = stored_tree(folder, info, part)
    except CheckpointError as error:
        raise DamageError(str(error)) from error
    if tree.faults:
        raise DamageError(_damage(folder, part, tree.faults))
    return tree


def _unused_digest(folder: Path, info: CheckpointInfo, part: str) -> str | None:
    """The digest of the file of unused tensors, which must be the one that was written; None if there is no such file."""
    file, recorded = unused_file(folder, part), _digests(folder, info, part)
    if not os.path.lexists(file):
        if recorded is not None and file.name in recorded:
            raise DamageError(_damage(folder, part, {file.name: "missing"}))
        return None
    digest = file_digest(file, folder)
    if recorded is not None and recorded.get(file.name) != digest:
        raise DamageError(_damage(folder, part, {file.name: DIFFERS}))
    return digest


def _digests(folder: Path, info: CheckpointInfo, part: str) -> Mapping[str, str] | None:
    if info.digests is None:
        _note_that_nothing_is_known(folder)
        return None
    return info.digests[part]


@functools.cache  # once for each checkpoint
def _note_that_nothing_is_known(folder: Path) -> None:
    _logger.warning("note: %s has format version 1, which has no digests: damaged weights cannot be detected", folder)


def _read(tree: StoredTree, use: Callable[[StoredLeaf, np.ndarray], T]) -> dict[str, T]:
    try:
        return read_leaves(tree.leaves.values(), use)
    except DamageError:
        raise
    except CheckpointError as error:
        raise DamageError(f"{error}; {REMEDY}") from error


def _damage(folder: Path, part: str, faults: Mapping[str, str]) -> str:
    shown = [f"{path}: {fault}" if path else fault for path, fault in sorted(faults.items())]
    more = f"; and {len(shown) - _SHOWN} more, which python -m convert --check {folder} lists" if len(shown) > _SHOWN else ""
    return f"{folder / part} is not what was written: {'; '.join(shown[:_SHOWN])}{more}; {REMEDY}"


def _link_or_copy(source: Path, target: Path, link: bool) -> None:
    if link:
        with contextlib.suppress(OSError):
            os.link(os.path.realpath(source), target)
            return
    with open_regular(source) as stream, target.open("xb") as copy:
        shutil.copyfileobj(stream, copy, 2**20)
