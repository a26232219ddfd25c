"""Carries out a plan: reads each source tensor directly into its place in a stacked leaf, writes the checkpoint, and verifies it.

Verification exports what was written and compares it with the source bit for bit.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.checkpoint.format import (
    CHECKPOINT,
    CheckpointInfo,
    is_checkpoint,
    read_checkpoint_info,
    unused_file,
    write_checkpoint_info,
)
from und3rstand_jax.checkpoint.parts import copy_part, file_digest
from und3rstand_jax.checkpoint.safetensors_tree import is_finite
from und3rstand_jax.checkpoint.trees import check_name, unflatten, write_tree
from und3rstand_jax.convert.export import torch_tensors
from und3rstand_jax.convert.findings import Complaint, raise_if_any
from und3rstand_jax.convert.mapping import shape_text
from und3rstand_jax.convert.parts import ConversionPlan, PartPlan, part_provenance
from und3rstand_jax.convert.sources.safetensors_files import write_safetensors
from und3rstand_jax.support.output_folder import check_free_space, check_output_folder, output_folder
from und3rstand_jax.support.progress import progress_bar, timed
from und3rstand_jax.support.results import check_apart

_logger = logging.getLogger(__name__)

_ALIGNMENT = 64  # bytes: JAX takes a NumPy array without a copy when it starts on such a boundary
_ROWS = 16  # float32 values in a cache line


def convert(
    plan: ConversionPlan, out: Path, overwrite: bool = False, progress: bool = True, check: Callable[[Path], object] | None = None
) -> None:
    """Writes the converted checkpoint `out`, which appears complete or not at all.

    Args:
        plan: what to convert.
        out: the folder.
        overwrite: whether an earlier result there may be replaced.
        progress: whether a terminal shows progress bars.
        check: called with the finished checkpoint before it is moved into place; it raises to reject the checkpoint.

    Raises:
        OutputError: `out` may not be written.
        CheckpointError: tensors hold NaN or infinite values, or differ from their second names.
    """
    check_name(out)
    check_apart(out, plan.local_paths)
    check_output_folder(out, overwrite, CHECKPOINT)
    check_free_space(out, plan.result_bytes)
    for part in plan.parts:
        for note in part.notes:
            _logger.info("note: %s", note)
    with output_folder(out, overwrite, CHECKPOINT) as folder, ThreadPoolExecutor(1) as beside:
        # Hashing releases the interpreter lock: it runs while tensors are read.
        digests = {id(source): beside.submit(source.sha256) for source in plan.sources}
        leaf_digests: dict[str, Mapping[str, str]] = {}
        configs: dict[str, Any] = {}
        provenance: dict[str, Mapping[str, Any]] = {}
        for copied in plan.copied:
            with timed("copying the %s of %s", copied.part, copied.folder):
                leaf_digests[copied.part] = copy_part(copied.folder, read_checkpoint_info(copied.folder), copied.part, folder)
            configs[copied.part], provenance[copied.part] = copied.config, copied.provenance
        for part in plan.parts:
            leaf_digests[part.part] = _write_part(folder, part, progress)
            configs[part.part], provenance[part.part] = part.config, part_provenance(part, digests[id(part.source)].result())
        write_checkpoint_info(folder, CheckpointInfo(**configs, provenance=provenance, digests=leaf_digests))
        if check is not None:
            check(folder)


def is_conversion_of(plan: ConversionPlan, folder: Path) -> bool:
    """Whether a folder holds what this plan writes: the same bytes from the same sources, and the same decisions about them."""
    if not is_checkpoint(folder):
        return False
    provenance = read_checkpoint_info(folder).provenance
    planned = {part.part: part_provenance(part, part.source.sha256()) for part in plan.parts}
    kept = {part.part: part.provenance for part in plan.copied}
    return json.loads(json.dumps({**planned, **kept})) == json.loads(json.dumps(dict(provenance)))


def _write_part(folder: Path, part: PartPlan, progress: bool) -> dict[str, str]:
    """Writes the tree and the unused tensors of a part; returns their digests."""
    tensors = part.source.tensors
    differing = [
        Complaint(second, f"values differ from those of {first}, whose second name it is")
        for second, first in part.second_names.items()
        if tensors.read(second).tobytes() != tensors.read(first).tobytes()
    ]
    raise_if_any(differing, f"the {part.part}'s tensors do not fit")
    with progress_bar(f"reading {part.part}", part.read_bytes, "B", progress) as advance:
        filled: dict[str, Any] = dict(fill(part, advance))
    import jax

    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out: Orbax takes NumPy arrays too, and copies them
        pass
    else:  # the same memory as JAX arrays, which Orbax writes without copying them first
        filled = {path: jax.device_put(array, cpu, may_alias=True) for path, array in filled.items()}
    with timed("writing %s (%.0f MiB)", part.part, part.read_bytes / 2**20):
        digests = write_tree(folder / part.part, unflatten(filled))
    if part.unused:
        unused = unused_file(folder, part.part)
        write_safetensors(unused, {name: tensors.read(name) for name in part.unused})
        digests[unused.name] = file_digest(unused, folder)
    return digests


def fill(part: PartPlan, advance: Callable[[int], object]) -> dict[str, np.ndarray]:
    """Path -> array of every leaf, in the source's dtype. Keeps only one source tensor at a time in memory besides the result.

    `advance` is called with the bytes of each tensor read.

    Raises:
        CheckpointError: tensors hold NaN or infinite values; all are named.
    """
    import ml_dtypes

    tensors = part.source.tensors
    filled, not_finite = {}, list[Complaint]()
    for path, leaf in part.leaves.items():
        dtype = tensors[leaf.names[0]].dtype
        kept = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        size = math.prod(part.shapes[path]) * kept.itemsize
        buffer = np.empty(size + _ALIGNMENT, np.uint8)
        start = -buffer.ctypes.data % _ALIGNMENT
        array = filled[path] = buffer[start : start + size].view(kept).reshape(part.shapes[path])
        for index, name in leaf.places():
            tensor = tensors.read(name)
            if not is_finite(tensor):
                bad = int(np.sum(~np.isfinite(tensor.astype(np.float32))))
                not_finite.append(Complaint(name, f"{bad} of {tensor.size} values"))
            # Into a transposed view a few rows at a time: all at once, every element written would miss the cache.
            target = leaf.layout.to_torch(array[index])
            for row in range(0, len(tensor), _ROWS):
                target[row : row + _ROWS] = tensor[row : row + _ROWS]
            advance(tensor.nbytes)
    # A tensor that fills two leaves is named once.
    raise_if_any(list(dict.fromkeys(not_finite)), "found NaN or infinite values, expected finite ones")
    return filled


def verify(plan: ConversionPlan, folder: Path, progress: bool = True) -> int:
    """Compares every tensor of the sources with the converted checkpoint `folder`.

    Returns:
        The number of tensors compared, all equal in name, dtype, shape and bits.

    Raises:
        CheckpointError: some differ or are missing; all are named.
    """
    info = read_checkpoint_info(folder)
    compared, found = 0, list[Complaint]()
    for source in plan.sources:
        missing = set(source.tensors)
        with progress_bar("verifying", len(missing), " tensors", progress) as advance:
            for part in plan.parts:
                for name, ours in torch_tensors(folder, info, part.part) if part.source is source else ():
                    missing.discard(name)
                    compared += 1
                    advance(1)
                    if name not in source.tensors:
                        found.append(Complaint(name, "exported, but not in the source"))
                        continue
                    theirs = source.tensors.read(name)
                    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
                        described = [f"{tensor.dtype} {shape_text(tensor.shape)}" for tensor in (ours, theirs)]
                        found.append(Complaint(name, f"{described[0]}, the source has {described[1]}"))
                    # Bits, not values: -0.0 equals 0.0 but is a different tensor.
                    elif np.ascontiguousarray(ours).tobytes() != np.ascontiguousarray(theirs).tobytes():
                        found.append(Complaint(name, "bits differ"))
        found += [Complaint(name, "in the source, not in the export") for name in missing]
    raise_if_any(found, "what was written differs from the source and was removed again; this is a bug, or a faulty disk or memory")
    _logger.info("verified: %d tensors equal the source's, bit for bit", compared)
    return compared
