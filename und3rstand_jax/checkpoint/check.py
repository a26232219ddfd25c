"""Checks which leaves of a converted checkpoint are intact: every leaf is read, even if others are damaged."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from und3rstand_jax.checkpoint.format import CheckpointInfo, read_checkpoint_info
from und3rstand_jax.checkpoint.leaves import StoredLeaf
from und3rstand_jax.checkpoint.parts import DIFFERS, read_unused
from und3rstand_jax.checkpoint.stored import stored_tree
from und3rstand_jax.checkpoint.trees import leaf_digest, read_leaves
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.results import files_in


def check_checkpoint(folder: Path) -> tuple[list[str], list[str]]:
    """Reads a whole converted checkpoint.

    Returns:
        Lines that say what is intact and what that was checked against, and lines that name what is damaged, missing, or surplus.

    Raises:
        CheckpointError: it is not a converted checkpoint, or its `config.json` is damaged.
    """
    info = read_checkpoint_info(folder)
    whole, faults = list[str](), list[str]()
    for part in info.parts:
        count, found = _check_part(folder, info, part)
        known = "equal to their digests" if info.digests is not None else "readable; format version 1 has no digests to compare them with"
        whole.append(f"{part}: {count} leaves {known}")
        faults += found
    beside = {file for file in info.files if not (folder / file).is_file() and "." not in Path(file).parent.name}
    faults += [f"{file}: missing" for file in sorted(beside) if Path(file).name != "_METADATA"]
    if info.files:
        other = sorted({*files_in(folder)} - {*info.files})
        whole += [f"{name}: not part of the checkpoint, ignored" for name in other[:20]]
        whole += [f"and {len(other) - 20} more files"] if len(other) > 20 else []
    return whole, faults


def _check_part(folder: Path, info: CheckpointInfo, part: str) -> tuple[int, list[str]]:
    """How many leaves are intact, and what is wrong with the others."""
    try:
        tree = stored_tree(folder, info, part)
    except CheckpointError as error:
        return 0, [str(error)]
    recorded = None if info.digests is None else info.digests[part]
    differs = functools.partial(_fault, recorded)
    found = read_leaves(tree.leaves.values(), differs, failed=lambda _, error: str(error))
    faults = {**tree.faults, **{path: fault for path, fault in found.items() if fault}}
    try:
        read_unused(folder, info, part)
    except CheckpointError as error:
        faults["its unused tensors"] = str(error)
    return list(found.values()).count(""), [f"{part}/{path}: {fault}" if path else f"{part}: {fault}" for path, fault in faults.items()]


def _fault(recorded: Mapping[str, str] | None, leaf: StoredLeaf, values: np.ndarray) -> str:
    return "" if recorded is None or recorded.get(leaf.path) == leaf_digest(leaf.path, values) else DIFFERS
