"""From a converted checkpoint back to PyTorch: its names and layouts, as safetensors files."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.checkpoint.format import CONFIG, REMEDY, CheckpointInfo, read_checkpoint_info
from und3rstand_jax.checkpoint.parts import read_part, read_unused
from und3rstand_jax.checkpoint.stored import expected_shapes
from und3rstand_jax.convert.findings import natural_key
from und3rstand_jax.convert.licences import HEADER, header_of, known_licences
from und3rstand_jax.convert.mapping import export, leaves_from_json
from und3rstand_jax.convert.model_card import base_models
from und3rstand_jax.convert.sources.safetensors_files import write_safetensors
from und3rstand_jax.model.tensor_names import Leaf
from und3rstand_jax.support.documents import parse_json
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.output_folder import output_folder
from und3rstand_jax.support.progress import timed
from und3rstand_jax.support.results import ResultKind, check_apart

_TENSORS = "model.safetensors"
_MARK = {"exported_by": "und3rstand_jax"}  # in the safetensors header: nobody's original is ever replaced


def export_checkpoint(
    folder: Path, out: Path, overwrite: bool = False, float16: bool = False, provenance: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Path]:
    """Writes the parts of a converted checkpoint as `model.safetensors` and `config.json`, as PyTorch reads them.

    Parts that came from one source, or a single part, go to `out` itself; a backbone and probes from different sources
    go to `out/backbone` and `out/probes`. Tensors are bit for bit those that were converted or, with `float16`, rounded to float16.
    The header of `model.safetensors` names the licence and the base model, which a later conversion reads. They come from `provenance`,
    by default the checkpoint's own.

    Returns:
        The folders written.

    Raises:
        CheckpointError: `folder` is not a converted checkpoint, or is damaged.
        OutputError: `out` may not be written.
        OptionError: a value is too large for float16.
    """
    info = read_checkpoint_info(folder)
    check_apart(out, [folder])
    if provenance is not None:
        info = dataclasses.replace(info, provenance=provenance)
    together = len({json.dumps(info.provenance[part]["sha256"], sort_keys=True) for part in info.parts}) == 1
    groups = {".": info.parts} if together else {part: (part,) for part in info.parts}
    with output_folder(out, overwrite, ResultKind(_TENSORS, _export_files)) as written:
        for place, parts in groups.items():
            with timed("exporting %s to %s", " and ".join(parts), out / place):
                _write(written / place, folder, info, parts, float16)
    return [out / place for place in groups]


def torch_tensors(folder: Path, info: CheckpointInfo, part: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) for everything in the part's source: what the model uses, what it never reads, second names."""
    provenance = info.provenance[part]
    seconds: dict[str, list[str]] = {}
    for second, first in provenance["second_names"].items():
        seconds.setdefault(first, []).append(second)
    first_seen: dict[str, np.ndarray] = {}
    leaves = _leaves(folder, info, part)
    counts = Counter(name for leaf in leaves.values() for name in leaf.names)
    for name, tensor in export(read_part(folder, info, part), leaves):
        if name in first_seen:
            # CroCo's one decoder fills both of ours. Once they differ (after training), one name cannot hold both.
            if not np.array_equal(first_seen[name], tensor):
                raise CheckpointError(f"{name} would have to hold two different tensors: both decoders came from it and have changed since")
            continue
        if counts[name] > 1:
            first_seen[name] = tensor
        for label in (name, *seconds.get(name, ())):
            yield label, tensor
    yield from read_unused(folder, info, part).items()


def _leaves(folder: Path, info: CheckpointInfo, part: str) -> dict[str, Leaf]:
    """The recorded tensors that each leaf came from, which must fit the leaves' shapes."""
    leaves, shapes = leaves_from_json(info.provenance[part]["leaves"]), expected_shapes(info, part)
    for path in leaves.keys() & shapes.keys():
        leaf, shape = leaves[path], shapes[path]
        axes = len(shape) - len(leaf.stack) + leaf.layout.dropped
        fits = leaf.stack == shape[: len(leaf.stack)] and 0 <= leaf.layout.dropped <= 4 and sorted(leaf.layout.axes) == list(range(axes))
        if not fits or len(leaf.names) != math.prod(leaf.stack):
            raise CheckpointError(f"{folder / CONFIG} is damaged: the names it records for {part}/{path} do not fit its shape; {REMEDY}")
    return leaves


def _write(target: Path, folder: Path, info: CheckpointInfo, parts: Sequence[str], float16: bool) -> None:
    tensors = dict(named for part in parts for named in torch_tensors(folder, info, part))
    if float16:
        for name, tensor in tensors.items():
            largest = np.abs(tensor).max(initial=0.0)
            if largest > np.finfo(np.float16).max:
                raise OptionError(f"{name} holds values up to {largest:g}, too large for float16; export without --float16")
            tensors[name] = tensor.astype(np.float16)
    second_names = {second: first for part in parts for second, first in info.provenance[part]["second_names"].items()}
    # A tensor with two names is stored once and its second name noted in the header, as safetensors' own loader for
    # PyTorch expects and as in the hub's files.
    stored = {name: tensor for name, tensor in tensors.items() if name not in second_names}
    target.mkdir(exist_ok=True)
    source = {key: value for key, value in info.provenance[parts[0]]["metadata"].items() if key not in HEADER}
    metadata = {"format": "pt", **source, **second_names, **_origin(info, parts), **_MARK}
    write_safetensors(target / _TENSORS, stored, metadata)
    # The original's reader accepts bare Infinity, which its own files have.
    (target / "config.json").write_text(json.dumps(_config(info, parts), indent=2) + "\n")


def _origin(info: CheckpointInfo, parts: Sequence[str]) -> dict[str, str]:
    """The licence and the base models of parts, for the header. Probes that were trained here take their backbone's."""
    records = {part: info.provenance[part] for part in parts}
    if tuple(parts) == ("probes",) and records["probes"]["kind"] == "training":
        records = dict(info.provenance)
    bases = base_models(records)
    return header_of(known_licences(records)[0]) | ({"base_model": ", ".join(bases)} if bases else {})


def _config(info: CheckpointInfo, parts: Sequence[str]) -> dict[str, Any]:
    """The source's own config if it had one, else one that describes its parts in terms that the converter reads."""
    stated = info.provenance[parts[0]]["config"]
    if stated is not None:
        return parse_json(stated, "the source's config in config.json", dict[str, Any], CheckpointError, REMEDY)
    backbone = info.backbone.to_hub_config() if info.backbone is not None and "backbone" in parts else {}
    if info.probes is None or "probes" not in parts:
        return backbone
    # Everything that tensors do not show. Layers are in the order of the tensors' names, which may differ from network order.
    config, leaves = info.probes, leaves_from_json(info.provenance["probes"]["leaves"])
    first_name: dict[str, str] = {}
    for number, group in enumerate(config.groups):
        names = leaves[f"group{number}/linear0/kernel"].names
        first_name |= dict(zip(group.layer_ids, names[:: len(names) // len(group.layer_ids)], strict=True))
    has_norm = any("norm" in group.steps for group in config.groups)
    fields = ["activation", *(["norm", "norm_epsilon"] if has_norm else []), "residual", "output_layout", "depth_mode", "conf_mode"]
    probes = {
        "layer_ids": sorted(first_name, key=lambda layer: natural_key(first_name[layer])),
        **{field: getattr(config, field) for field in fields},
    }
    return {**backbone, "probes": probes} if backbone else probes


def _export_files(folder: Path) -> frozenset[str] | None:
    """The files of an earlier export: safetensors files that carry our mark, and the config beside each; None if there are none."""
    from safetensors import SafetensorError, safe_open

    own: set[str] = set()
    for place in ("", "backbone/", "probes/"):
        file = folder / place / _TENSORS
        if file.is_file():
            try:
                with safe_open(file, framework="numpy") as held:
                    metadata = held.metadata() or {}
            except (SafetensorError, OSError):  # not even a safetensors file
                continue
            if _MARK.items() <= metadata.items():
                own |= {f"{place}{_TENSORS}", f"{place}config.json"}
    return frozenset(own) or None
