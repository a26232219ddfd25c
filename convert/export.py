"""From a converted checkpoint back to PyTorch's names and layouts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.mapping import export
from convert.provenance import leaves_from_json
from convert.writing import unused_file
from und3rstand_jax.checkpoint import CheckpointInfo, is_checkpoint, read_checkpoint_info, read_tree
from und3rstand_jax.errors import UserError
from und3rstand_jax.output_folder import output_folder


def export_checkpoint(folder: Path, out: Path, overwrite: bool = False) -> list[Path]:
    """Writes the parts of a converted checkpoint as `model.safetensors` and `config.json`, as PyTorch reads them.

    Parts that came from one source, or a single part, go to `out` itself; a backbone and probes of different sources
    go to `out/backbone` and `out/probes`. Tensors are bit for bit those that were converted.

    Returns:
        The folders written.

    Raises:
        UserError: `folder` is no converted checkpoint, or `out` may not be written.
    """
    info = read_checkpoint_info(folder)
    parts = [part for part, held in (("backbone", info.has_backbone), ("probes", info.has_probes)) if held]
    together = len({json.dumps(info.provenance[part]["sha256"], sort_keys=True) for part in parts}) == 1
    with output_folder(out, overwrite, _is_export) as written:
        if together:
            tensors = dict(pair for part in parts for pair in torch_tensors(folder, info, part))
            _write(written, tensors, info.provenance[parts[0]], _config(info, parts[0]))
            return [out]
        for part in parts:
            _write(written / part, dict(torch_tensors(folder, info, part)), info.provenance[part], _config(info, part))
        return [out / part for part in parts]


def torch_tensors(folder: Path, info: CheckpointInfo, part: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of everything the part's source held: what the model uses, what it never reads, second names."""
    from safetensors.numpy import load_file

    provenance = info.provenance[part]
    seconds: dict[str, list[str]] = {}
    for second, first in provenance["second_names"].items():
        seconds.setdefault(first, []).append(second)
    first_seen: dict[str, np.ndarray] = {}
    for name, tensor in export(read_tree(folder / part), leaves_from_json(provenance["leaves"])):
        if name in first_seen:
            # CroCo's one decoder fills both of ours. Once they differ (after training), one name cannot hold both.
            if not np.array_equal(first_seen[name], tensor):
                raise UserError(f"{name} would have to hold two different tensors: both decoders came from it and have changed since")
            continue
        if part == "backbone" and "dec_blocks." in name:
            first_seen[name] = tensor
        for label in (name, *seconds.get(name, ())):
            yield label, tensor
    if unused_file(folder, part).exists():
        yield from load_file(unused_file(folder, part)).items()


def _write(folder: Path, tensors: Mapping[str, np.ndarray], provenance: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    metadata = {"format": "pt", **provenance["metadata"]}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors", metadata)
    # The original's reader takes bare Infinity, as its own files have it.
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _config(info: CheckpointInfo, part: str) -> dict[str, Any]:
    """The source's own config where it had one; else what describes the part in the hub's terms."""
    stated = info.provenance[part]["config"]
    if stated is not None:
        return stated
    if part == "backbone" and info.backbone is not None:
        return info.backbone.to_hub_config()
    return {"layer_ids": list(info.probed_layers)}


def _is_export(folder: Path) -> bool:
    inner = [folder, folder / "backbone", folder / "probes"]
    return not is_checkpoint(folder) and any((place / "model.safetensors").is_file() for place in inner)
