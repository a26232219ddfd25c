"""Writes what was trained as a converted checkpoint, probes with the backbone they were trained on: everything that takes one takes it.

The probes' provenance names a PyTorch tensor for every leaf (`probes.{number}.mlp.{step}.weight`, numbers in network order, steps as in
a Sequential), so that `python -m convert --to-torch` exports them and the converter reads the export back.
"""

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.checkpoint.format import CheckpointInfo, is_checkpoint, read_checkpoint_info, unused_file, write_checkpoint_info
from und3rstand_jax.checkpoint.output_folder import check_apart, output_folder
from und3rstand_jax.checkpoint.trees import flatten, unflatten, write_tree
from und3rstand_jax.convert.backbone_names import backbone_leaves
from und3rstand_jax.convert.mapping import Leaf, LeafMap
from und3rstand_jax.convert.planning import probe_leaves
from und3rstand_jax.convert.provenance import leaves_to_json
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.probes import probe_shapes
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.files import strict_json


def write_trained_probes(
    out: Path,
    backbone_folder: Path,
    config: ProbeConfig,
    params: Mapping[str, Any],
    training: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes the converted checkpoint `out`, which appears complete or not at all.

    Args:
        out: the folder.
        backbone_folder: a converted checkpoint; its backbone is linked to where the file system can, copied where not. Probes that it
            holds are left behind.
        config: the shape of every probe.
        params: their parameters, stacked as `PointmapProbes` has them, on whatever devices.
        training: how they were trained, as JSON; NaN becomes null, an infinity a string.
        overwrite: whether an earlier checkpoint there may be replaced.

    Raises:
        UserError: `out` may not be written, `backbone_folder` holds no backbone, or the parameters are not those of `config`.
    """
    check_apart(out, [backbone_folder])
    earlier = read_checkpoint_info(backbone_folder)
    if earlier.backbone is None:
        raise UserError(f"{backbone_folder} holds no backbone; expected the converted checkpoint that the probes were trained on")
    tree = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(dict(params)).items()}
    _check_shapes(tree, config)
    provenance = {"backbone": earlier.provenance["backbone"], "probes": _origin("probes", tree, torch_leaves(config), training)}
    with output_folder(out, overwrite, is_checkpoint) as folder:
        shutil.copytree(backbone_folder / "backbone", folder / "backbone", copy_function=_link_or_copy)
        if unused_file(backbone_folder, "backbone").exists():
            _link_or_copy(unused_file(backbone_folder, "backbone"), unused_file(folder, "backbone"))
        write_tree(folder / "probes", unflatten(tree))
        write_checkpoint_info(folder, CheckpointInfo(earlier.backbone, config, provenance))


def write_trained_backbone(
    out: Path,
    config: BackboneConfig,
    params: Mapping[str, Any],
    training: Mapping[str, Any],
    start: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a trained backbone as the converted checkpoint `out`, which appears complete or not at all.

    Args:
        out: the folder.
        config: the architecture.
        params: its parameters, on whatever devices.
        training: how they were trained, as JSON; NaN becomes null, an infinity a string.
        start: the converted checkpoint that training went on from; its tensors that the model never reads are kept for the export.
        overwrite: whether an earlier checkpoint there may be replaced.

    Raises:
        UserError: `out` may not be written, or the parameters are not those of `config`.
    """
    if start is not None:
        check_apart(out, [start])
    tree = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(dict(params)).items()}
    leaves = backbone_leaves(config)
    if tree.keys() != leaves.keys():
        raise UserError(
            f"the parameters are not those of the architecture: they differ in {', '.join(sorted(tree.keys() ^ leaves.keys()))}"
        )
    origin = _origin("backbone", tree, leaves, training)
    earlier: Mapping[str, Any] = {} if start is None else read_checkpoint_info(start).provenance["backbone"]
    if earlier:
        origin |= {"unused": earlier["unused"], "second_names": earlier["second_names"], "leaves": earlier["leaves"]}
        origin |= {"start": {name: earlier[name] for name in ("source", "kind", "revision", "sha256")}}
    with output_folder(out, overwrite, is_checkpoint) as folder:
        write_tree(folder / "backbone", unflatten(tree))
        if start is not None and unused_file(start, "backbone").exists():
            _link_or_copy(unused_file(start, "backbone"), unused_file(folder, "backbone"))
        write_checkpoint_info(folder, CheckpointInfo(config, None, {"backbone": {**origin, "variant": "trained here"}}))


def torch_leaves(config: ProbeConfig) -> dict[str, Leaf]:
    """The PyTorch tensors of every leaf: `probes.{number}.mlp.{step}`, or `probes.{number}.view{1,2}.mlp.{step}` for separate views.

    `number` counts the probed layers in network order, `step` the modules of a Sequential, activations included.
    """
    prefixes = ("view1.mlp", "view2.mlp") if config.views == "separate" else ("mlp",)
    number = {layer: i for i, layer in enumerate(config.layer_ids)}
    names = {
        f"group{index}/{path}": [[f"probes.{number[layer]}.{prefix}.{tensor}" for prefix in prefixes] for layer in group.layer_ids]
        for index, group in enumerate(config.groups)
        for path, tensor in _tensors(group)
    }
    return probe_leaves(names)


def _tensors(group: ProbeGroup) -> Iterator[tuple[str, str]]:
    """(leaf, tensor) of each parameter of a probe, as in ("linear0/kernel", "1.weight")."""
    count = {"linear": 0, "norm": 0}
    for step, kind in enumerate(group.steps):
        if kind == "activation":
            continue
        number, has_bias = count[kind], (group.biases if kind == "linear" else group.norm_biases)[count[kind]]
        count[kind] += 1
        yield f"{kind}{number}/{'kernel' if kind == 'linear' else 'scale'}", f"{step}.weight"
        if has_bias:
            yield f"{kind}{number}/bias", f"{step}.bias"


def _origin(part: str, tree: Mapping[str, np.ndarray], leaves: LeafMap, training: Mapping[str, Any]) -> dict[str, Any]:
    """The record that `und3rstand_jax.convert.provenance` makes of what it converts, of what was trained."""
    return {
        "source": "trained",
        "kind": "training",
        "revision": None,
        "sha256": {part: _digest(tree)},
        "config": None,
        "metadata": {},
        "converter": f"und3rstand_jax {importlib.metadata.version('und3rstand_jax')}",
        "leaves": leaves_to_json(leaves),
        "unused": {},
        "second_names": {},
        "findings": [],
        "training": strict_json(training),
    }


def _digest(tree: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over every leaf's path, shape and values: there is no source file to take it of."""
    digest = hashlib.sha256()
    for path in sorted(tree):
        digest.update(f"{path} {tree[path].shape}\n".encode())
        digest.update(np.ascontiguousarray(tree[path]).data)
    return digest.hexdigest()


def _check_shapes(tree: Mapping[str, np.ndarray], config: ProbeConfig) -> None:
    expected = {path: tuple(leaf.shape) for path, leaf in flatten(probe_shapes(config)).items()}
    found = {path: leaf.shape for path, leaf in tree.items()}
    odd = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    if odd:
        first = odd[0]
        raise UserError(
            f"{len(odd)} of the probes' parameters are not those of their config; "
            f"{first} for one: expected {expected.get(first, 'none')}, found {found.get(first, 'none')}"
        )


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file where the file system has them, else a copy. Nobody writes into a finished checkpoint."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
