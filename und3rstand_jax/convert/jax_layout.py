"""The JAX layout beside the PyTorch one, in the folder `jax` of a repository on the hub or of a copy of it.

It is a converted checkpoint whose trees are safetensors files: `config.json`, `backbone.safetensors`, `probes.safetensors`, and whatever is
kept for the export. Leaves are named by their part and path, `backbone/encoder/norm/scale`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.checkpoint.format import (
    CONFIG,
    JAX,
    CheckpointInfo,
    is_checkpoint,
    read_checkpoint_info,
    tree_file,
    unused_file,
    write_checkpoint_info,
)
from und3rstand_jax.checkpoint.parts import DamageError, copy_unused, read_part, whole_tree
from und3rstand_jax.checkpoint.safetensors_tree import is_finite
from und3rstand_jax.checkpoint.trees import flatten, leaf_digest
from und3rstand_jax.convert.findings import Complaint, raise_if_any
from und3rstand_jax.convert.options import HubAccess
from und3rstand_jax.convert.sources.layout import looks_like_hub_id
from und3rstand_jax.convert.sources.safetensors_files import write_safetensors
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.files import in_home
from und3rstand_jax.support.text import listed

_FILES = frozenset(file(Path(), part).name for file in (tree_file, unused_file) for part in ("backbone", "probes"))
"""The files that are fetched besides the config, whatever else it lists."""


def write_jax_layout(folder: Path, info: CheckpointInfo, provenance: Mapping[str, Any], out: Path) -> None:
    """Writes a converted checkpoint again, in the JAX layout. The same checkpoint gives the same bytes.

    Args:
        folder: the checkpoint; every value is compared with its digest.
        info: its contents.
        provenance: recorded in place of its own.
        out: a new folder.

    Raises:
        CheckpointError: the checkpoint is damaged, or holds NaN or infinite values.
        OSError: it cannot be written.
    """
    out.mkdir()
    digests: dict[str, dict[str, str]] = {}
    for part in info.parts:
        leaves: dict[str, np.ndarray] = flatten(read_part(folder, info, part))
        bad = [Complaint(f"{part}/{path}", "NaN or infinite values") for path, values in leaves.items() if not is_finite(values)]
        raise_if_any(bad, f"{folder} is not fit to be shared")
        digests[part] = {path: leaf_digest(path, values) for path, values in leaves.items()}
        write_safetensors(tree_file(out, part), {f"{part}/{path}": values for path, values in leaves.items()}, {"format": "flax"})
        digests[part] |= copy_unused(folder, info, part, out)
    write_checkpoint_info(out, dataclasses.replace(info, provenance=provenance, digests=digests))


def find_jax_layout(source: str, access: HubAccess, progress: bool) -> Path | None:
    """The JAX layout of a source as a local folder, downloaded if necessary; None if the source has none.

    Args:
        source: a local folder, or a hub id.
        access: how the hub is reached.
        progress: whether downloads show progress bars.

    Raises:
        DamageError: it is incomplete or damaged: a file is missing, or does not match the config beside it.
        CheckpointError: the repository cannot be reached or read.
    """
    local = in_home(source)
    if local.exists():
        folder = local / JAX
        return _whole(folder) if is_checkpoint(folder) else None
    if not looks_like_hub_id(source):
        return None
    from und3rstand_jax.convert.sources.hub import open_repository

    root, _ = open_repository(source, access, progress)
    location = root.enter(JAX)
    if CONFIG not in location.names:
        return None
    folder = location.fetch(CONFIG).parent
    wanted = _FILES.intersection(_info(folder).files)
    if missing := sorted(wanted.difference(location.names)):
        raise DamageError(f"{location.label} lacks {listed(missing)}, which its {CONFIG} lists")
    for name in sorted(wanted):
        location.fetch(name)
    return _whole(folder)


def _whole(folder: Path) -> Path:
    info = _info(folder)
    for part in info.parts:
        whole_tree(folder, info, part)
    return folder


def _info(folder: Path) -> CheckpointInfo:
    try:
        return read_checkpoint_info(folder)
    except CheckpointError as error:
        raise DamageError(str(error)) from error
