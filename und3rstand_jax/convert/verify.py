"""Proof that a conversion lost nothing: what was written, exported again, against the source, bit for bit."""

import logging
from pathlib import Path

import numpy as np

from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.convert.export import torch_tensors
from und3rstand_jax.convert.findings import Complaint
from und3rstand_jax.convert.mapping import raise_if_any, shape_text
from und3rstand_jax.convert.planning import Plan
from und3rstand_jax.support.progress import progress_bar

_log = logging.getLogger(__name__)


def verify(plan: Plan, folder: Path, show_progress: bool = False) -> int:
    """Compares every tensor of the sources with the converted checkpoint `folder`.

    Returns:
        The number of tensors compared, all equal in name, dtype, shape and bits.

    Raises:
        UserError: some differ or are missing; all are named.
    """
    info = read_checkpoint_info(folder)
    compared, found = 0, list[Complaint]()
    for source in plan.sources:
        parts = [part for part, own in (("backbone", plan.backbone_source), ("probes", plan.probes_source)) if own is source]
        missing = set(source.tensors)
        with progress_bar("verifying", len(missing), " tensors", show_progress) as progress:
            for part in parts:
                for name, tensor in torch_tensors(folder, info, part):
                    missing.discard(name)
                    if name in source.tensors:
                        found += _differences(name, tensor, source.tensors.read(name))
                    else:
                        found.append(Complaint(name, "exported, but the source does not hold it"))
                    compared += 1
                    progress(1)
        found += [Complaint(name, "in the source, not in the export") for name in missing]
    raise_if_any(found, "what was written differs from the source and was removed again; this is a bug, or a faulty disk or memory")
    _log.info("verified: %d tensors equal the source's, bit for bit", compared)
    return compared


def _differences(name: str, ours: np.ndarray, theirs: np.ndarray) -> list[Complaint]:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return [Complaint(name, f"{ours.dtype} {shape_text(ours.shape)}, the source has {theirs.dtype} {shape_text(theirs.shape)}")]
    # Bits, not values: -0.0 equals 0.0 and is another tensor.
    same = np.ascontiguousarray(ours).tobytes() == np.ascontiguousarray(theirs).tobytes()
    return [] if same else [Complaint(name, "bits differ")]
