"""Writes a planned conversion as a converted checkpoint."""

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from convert.fill import fill
from convert.mapping import LeafMap, unflatten
from convert.mapping_check import raise_if_any
from convert.planning import Plan, probe_leaves, probe_tree_shapes
from convert.progress import progress_bar, say
from convert.provenance import backbone_provenance, probes_provenance
from convert.sources.source import Source
from und3rstand_jax.checkpoint import CheckpointInfo, is_checkpoint, read_checkpoint_info, write_checkpoint_info, write_tree
from und3rstand_jax.errors import UserError
from und3rstand_jax.output_folder import output_folder


def convert(plan: Plan, out: Path, overwrite: bool = False, show_progress: bool = False) -> None:
    """Writes the converted checkpoint `out`, which appears complete or not at all.

    Raises:
        UserError: `out` may not be written, or the tensors hold what they must not.
    """
    _check_room(plan, out)
    with output_folder(out, overwrite, is_checkpoint) as folder, ThreadPoolExecutor(1) as beside:
        # Hashing leaves the interpreter free: it runs beside the reading.
        digests = {id(source): beside.submit(source.sha256) for source in plan.sources}
        config, provenance = None, {}
        if plan.converted_backbone is not None:
            earlier = read_checkpoint_info(plan.converted_backbone)
            config, provenance["backbone"] = earlier.backbone, earlier.provenance["backbone"]
            say(f"copying the backbone of {plan.converted_backbone}", show_progress)
            _copy_backbone(plan.converted_backbone, folder)
        if plan.backbone is not None and plan.backbone_source is not None:
            config, source = plan.backbone.config, plan.backbone_source
            raise_if_any(_differing_second_names(source, plan.backbone.second_names), "the backbone's tensors do not fit")
            _write_part(folder, "backbone", source, plan.backbone.leaves, plan.backbone.shapes, plan.backbone.unused, show_progress)
            provenance["backbone"] = backbone_provenance(source, plan.backbone, digests[id(source)].result())
        if plan.probes is not None and plan.probes_source is not None:
            leaves, source = probe_leaves(plan.probes.names), plan.probes_source
            _write_part(folder, "probes", source, leaves, probe_tree_shapes(plan.probes), plan.probes.unused, show_progress)
            provenance["probes"] = probes_provenance(source, plan.probes, leaves, digests[id(source)].result())
        write_checkpoint_info(folder, CheckpointInfo(config, plan.probes.config if plan.probes else None, provenance))


def unused_file(folder: Path, part: str) -> Path:
    """Where a converted checkpoint keeps the source tensors that its model never reads."""
    return folder / f"{part}_unused.safetensors"


def _write_part(
    folder: Path,
    part: str,
    source: Source,
    leaves: LeafMap,
    shapes: Mapping[str, tuple[int, ...]],
    unused: Mapping[str, str] | tuple[str, ...],
    show_progress: bool,
) -> None:
    tensors = source.tensors
    itemsize = {"float32": 4}
    total = sum(int(np.prod(tensors[name].shape)) * itemsize.get(tensors[name].dtype, 2) for leaf in leaves.values() for name in leaf.names)
    with progress_bar(f"reading {part}", total, "B", show_progress) as progress:
        filled = fill(leaves, shapes, tensors, progress)
    say(f"writing {part} ({total / 2**20:.0f} MiB)", show_progress)
    write_tree(folder / part, unflatten(_as_jax_arrays(filled)))
    if unused:
        from safetensors.numpy import save_file

        save_file({name: tensors.read(name) for name in unused}, unused_file(folder, part))


def _as_jax_arrays(filled: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same memory as JAX arrays on the CPU, which Orbax writes without copying them first."""
    import jax

    cpu = jax.local_devices(backend="cpu")[0]
    return {path: jax.device_put(array, cpu, may_alias=True) for path, array in filled.items()}


def _differing_second_names(source: Source, second_names: Mapping[str, str]) -> list[str]:
    return [
        f"{second}: values differ from those of {first}, whose second name it is"
        for second, first in second_names.items()
        if source.tensors.read(second).tobytes() != source.tensors.read(first).tobytes()
    ]


def _copy_backbone(converted: Path, folder: Path) -> None:
    shutil.copytree(converted / "backbone", folder / "backbone")
    if unused_file(converted, "backbone").exists():
        shutil.copy(unused_file(converted, "backbone"), folder)


def _check_room(plan: Plan, out: Path) -> None:
    """Refuses before any work where the disk cannot hold the result, or where `out` is a source."""
    places = [Path(source.spec).expanduser() for source in plan.sources if source.kind != "hub"]
    places += [plan.converted_backbone] if plan.converted_backbone else []
    for place in places:
        if out.resolve() == place.resolve():
            raise UserError(f"--out {out} is where the source {place} lies; choose another folder")
    needed = sum(file.stat().st_size for source in plan.sources for file in source.tensors.files)
    existing = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{existing} has {free / 2**30:.2f} GiB free; the converted checkpoint takes about {needed / 2**30:.2f} GiB: "
            "free some, or choose another --out"
        )
