"""Reads a source into a parameter tree, one tensor at a time, straight into its stacked place.

Writes a planned conversion as a converted checkpoint.
"""

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.checkpoint.format import CheckpointInfo, is_checkpoint, read_checkpoint_info, unused_file, write_checkpoint_info
from und3rstand_jax.checkpoint.output_folder import check_apart, check_output_folder, check_room, output_folder
from und3rstand_jax.checkpoint.trees import unflatten, write_tree
from und3rstand_jax.convert.export import write_safetensors
from und3rstand_jax.convert.findings import Complaint
from und3rstand_jax.convert.inspection import notes
from und3rstand_jax.convert.mapping import Leaf, LeafMap, raise_if_any
from und3rstand_jax.convert.planning import Plan, probe_leaves, probe_tree_shapes
from und3rstand_jax.convert.provenance import backbone_provenance, probes_provenance
from und3rstand_jax.convert.sources.source import Source
from und3rstand_jax.convert.sources.tensor_files import TensorFiles, TensorInfo
from und3rstand_jax.support.progress import progress_bar

_log = logging.getLogger(__name__)

_ALIGNMENT = 64  # bytes: JAX takes a NumPy array without a copy when it starts on such a boundary


_ROWS = 16  # float32 values in a cache line


def fill(
    leaves: LeafMap, shapes: Mapping[str, tuple[int, ...]], tensors: TensorFiles, progress: Callable[[int], object]
) -> dict[str, np.ndarray]:
    """Path -> array of every leaf, in the source's dtype. Holds one source tensor at a time beside the result.

    `progress` is told the bytes of each tensor read.

    Raises:
        UserError: tensors hold NaN or infinite values; all are named.
    """
    filled, not_finite = {}, list[Complaint]()
    for path, leaf in leaves.items():
        array = filled[path] = _aligned(shapes[path], _dtype(leaf, tensors))
        for index, name in leaf.places():
            tensor = tensors.read(name)
            if not _is_finite(tensor):
                bad = int(np.sum(~np.isfinite(tensor.astype(np.float32))))
                not_finite.append(Complaint(name, f"{bad} of {tensor.size} values"))
            _copy(tensor, leaf.layout.to_torch(array[index]))
            progress(tensor.nbytes)
    # A tensor that fills two leaves is named once.
    raise_if_any(list(dict.fromkeys(not_finite)), "found NaN or infinite values, expected finite ones")
    return filled


def _copy(tensor: np.ndarray, target: np.ndarray) -> None:
    """Copies into a transposed view a few rows at a time: whole, every element written would miss the cache."""
    for start in range(0, len(tensor), _ROWS):
        target[start : start + _ROWS] = tensor[start : start + _ROWS]


def _dtype(leaf: Leaf, tensors: TensorFiles) -> np.dtype:
    import ml_dtypes

    name = tensors[leaf.names[0]].dtype
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _is_finite(tensor: np.ndarray) -> bool:
    # One pass without a temporary: a sum is finite unless a summand is not, or (then looked at closely) it overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        total = tensor.sum(dtype=np.float32)
    return bool(np.isfinite(total)) or bool(np.isfinite(tensor.astype(np.float32)).all())


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def convert(
    plan: Plan, out: Path, overwrite: bool = False, show_progress: bool = False, check: Callable[[Path], object] | None = None
) -> None:
    """Writes the converted checkpoint `out`, which appears complete or not at all.

    Args:
        plan: what to convert.
        out: the folder.
        overwrite: whether an earlier result there may be replaced.
        show_progress: whether to tell on stderr what is being done, and what had to be guessed.
        check: called with the finished checkpoint before it takes its place, to raise if it is not good.

    Raises:
        UserError: `out` may not be written, or the tensors hold what they must not.
    """
    check_output_folder(out, overwrite, is_checkpoint)
    check_apart(out, _places(plan))
    check_room(out, _bytes_needed(plan))
    for note in notes(plan):
        _log.info("note: %s", note)
    with output_folder(out, overwrite, is_checkpoint) as folder, ThreadPoolExecutor(1) as beside:
        # Hashing leaves the interpreter free: it runs beside the reading.
        digests = {id(source): beside.submit(source.sha256) for source in plan.sources}
        config, provenance = None, {}
        if plan.converted_backbone is not None:
            earlier = read_checkpoint_info(plan.converted_backbone)
            config, provenance["backbone"] = earlier.backbone, earlier.provenance["backbone"]
            _log.info("copying the backbone of %s", plan.converted_backbone)
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
        if check is not None:
            check(folder)


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
    total = _bytes(leaves, tensors)
    with progress_bar(f"reading {part}", total, "B", show_progress) as progress:
        filled = fill(leaves, shapes, tensors, progress)
    _log.info("writing %s (%.0f MiB)", part, total / 2**20)
    write_tree(folder / part, unflatten(_as_jax_arrays(filled)))
    if unused:
        write_safetensors(unused_file(folder, part), {name: tensors.read(name) for name in unused})


def _as_jax_arrays(filled: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same memory as JAX arrays on the CPU, which Orbax writes without copying them first."""
    import jax

    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out: Orbax takes NumPy arrays too, and copies them
        return dict(filled)
    return {path: jax.device_put(array, cpu, may_alias=True) for path, array in filled.items()}


def _differing_second_names(source: Source, second_names: Mapping[str, str]) -> list[Complaint]:
    return [
        Complaint(second, f"values differ from those of {first}, whose second name it is")
        for second, first in second_names.items()
        if source.tensors.read(second).tobytes() != source.tensors.read(first).tobytes()
    ]


def _copy_backbone(converted: Path, folder: Path) -> None:
    shutil.copytree(converted / "backbone", folder / "backbone")
    if unused_file(converted, "backbone").exists():
        shutil.copy(unused_file(converted, "backbone"), folder)


def _places(plan: Plan) -> list[Path]:
    """Where the sources are that are the user's own."""
    local = [Path(source.spec) for source in plan.sources if source.kind != "hub"]
    return [*local, plan.converted_backbone] if plan.converted_backbone else local


def _bytes_needed(plan: Plan) -> int:
    """What the result takes, uncompressed."""
    needed = 0
    if plan.converted_backbone is not None:
        needed += sum(file.stat().st_size for file in (plan.converted_backbone / "backbone").rglob("*") if file.is_file())
    if plan.backbone is not None and plan.backbone_source is not None:
        needed += _bytes(plan.backbone.leaves, plan.backbone_source.tensors)
        needed += _stored(plan.backbone_source.tensors, plan.backbone.unused)
    if plan.probes is not None and plan.probes_source is not None:
        needed += _bytes(probe_leaves(plan.probes.names), plan.probes_source.tensors)
        needed += _stored(plan.probes_source.tensors, plan.probes.unused)
    return needed


def _bytes(leaves: LeafMap, tensors: TensorFiles) -> int:
    return sum(_stored(tensors, leaf.names) for leaf in leaves.values())


def _stored(tensors: TensorFiles, names: Iterable[str]) -> int:
    return sum(_tensor_bytes(tensors[name]) for name in names)


def _tensor_bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * {"float32": 4}.get(info.dtype, 2)
