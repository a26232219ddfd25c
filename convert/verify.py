"""Proof that a conversion lost nothing: what was written, exported again, against the source, bit for bit."""

from pathlib import Path

import numpy as np

from convert.export import torch_tensors
from convert.mapping_check import raise_if_any
from convert.planning import Plan
from convert.progress import progress_bar
from und3rstand_jax.checkpoint import read_checkpoint_info


def verify(plan: Plan, out: Path, show_progress: bool = False) -> int:
    """Compares every tensor of the sources with the converted checkpoint `out`.

    Returns:
        The number of tensors compared, all equal in name, dtype, shape and bits.

    Raises:
        UserError: some differ or are missing; all are named.
    """
    info = read_checkpoint_info(out)
    compared, found = 0, []
    for source in plan.sources:
        parts = [part for part, own in (("backbone", plan.backbone_source), ("probes", plan.probes_source)) if own is source]
        missing = set(source.tensors)
        with progress_bar("verifying", len(missing), " tensors", show_progress) as progress:
            for part in parts:
                for name, tensor in torch_tensors(out, info, part):
                    missing.discard(name)
                    found += [] if name not in source.tensors else _differences(name, tensor, source.tensors.read(name))
                    found += [f"{name}: exported, but the source does not hold it"] if name not in source.tensors else []
                    compared += 1
                    progress(1)
        found += [f"{name}: in the source, not in the export" for name in sorted(missing)]
    raise_if_any(found, f"{out} does not hold what its source holds")
    return compared


def _differences(name: str, ours: np.ndarray, theirs: np.ndarray) -> list[str]:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return [f"{name}: {ours.dtype} {ours.shape}, the source has {theirs.dtype} {theirs.shape}"]
    # Bits, not values: -0.0 equals 0.0 and is another tensor.
    same = np.ascontiguousarray(ours).tobytes() == np.ascontiguousarray(theirs).tobytes()
    return [] if same else [f"{name}: bits differ"]
