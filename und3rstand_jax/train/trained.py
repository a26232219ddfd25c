"""Writes what was trained as a converted checkpoint, so that it works wherever a converted checkpoint does.

The provenance of probes names a PyTorch tensor for every leaf (`probes.{number}.mlp.{step}.weight`: layers numbered in network order,
steps as in a Sequential), so that `python -m convert --to-torch` exports them and the converter reads the export back.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from und3rstand_jax.checkpoint.format import CHECKPOINT, CheckpointInfo, read_checkpoint_info, write_checkpoint_info
from und3rstand_jax.checkpoint.parts import copy_part, copy_unused
from und3rstand_jax.checkpoint.trees import flatten, unflatten, write_tree
from und3rstand_jax.convert.licences import known_licences, licence_record
from und3rstand_jax.convert.mapping import leaves_to_json, probe_leaves
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import backbone_leaves
from und3rstand_jax.model.stack import Params
from und3rstand_jax.model.tensor_names import Leaf, LeafMap
from und3rstand_jax.probes.config import ProbeConfig
from und3rstand_jax.probes.probes import probe_shapes
from und3rstand_jax.support.errors import CheckpointError, ConfigError
from und3rstand_jax.support.output_folder import output_folder
from und3rstand_jax.support.results import check_apart
from und3rstand_jax.support.text import strict_json
from und3rstand_jax.support.versions import own_version


def write_trained_probes(
    out: Path, backbone_folder: Path, config: ProbeConfig, params: Params, training: Mapping[str, object], overwrite: bool = False
) -> None:
    """Writes probes, with the backbone they were trained on, as the converted checkpoint `out`, which appears complete or not at all.

    Args:
        out: the folder.
        backbone_folder: a converted checkpoint; its backbone is hard-linked where the file system allows it, else copied. Its probes,
            if any, are left out. Only files of the parameter tree are copied, and each is verified.
        config: the shape of every probe.
        params: their parameters, stacked as in `PointmapProbes`, on any device.
        training: how they were trained, as JSON; NaN becomes null, an infinity a string.
        overwrite: whether an earlier checkpoint at `out` may be replaced.

    Raises:
        OutputError: `out` may not be written.
        CheckpointError: `backbone_folder` contains no backbone.
        ConfigError: the parameters are not those of `config`.
    """
    check_apart(out, [backbone_folder])
    earlier = read_checkpoint_info(backbone_folder)
    if earlier.backbone is None:
        raise CheckpointError(f"{backbone_folder} contains no backbone; expected the converted checkpoint that the probes were trained on")
    tree = _as_float32(params)
    expected = {path: tuple(leaf.shape) for path, leaf in flatten(probe_shapes(config)).items()}
    found = {path: leaf.shape for path, leaf in tree.items()}
    wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    if wrong:
        raise ConfigError(
            f"{len(wrong)} of the probes' parameters are not those of their config, such as {wrong[0]}: "
            f"expected {expected.get(wrong[0], 'none')}, found {found.get(wrong[0], 'none')}"
        )
    provenance = {"backbone": earlier.provenance["backbone"], "probes": _provenance("probes", tree, torch_leaves(config), training)}
    with output_folder(out, overwrite, CHECKPOINT) as folder:
        digests = {
            "backbone": copy_part(backbone_folder, earlier, "backbone", folder, link=True),
            "probes": write_tree(folder / "probes", unflatten(tree)),
        }
        write_checkpoint_info(folder, CheckpointInfo(earlier.backbone, config, provenance, digests))


def write_trained_backbone(
    out: Path,
    config: ModelConfig,
    params: Params,
    training: Mapping[str, object],
    start: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a trained backbone as the converted checkpoint `out`, which appears complete or not at all.

    Args:
        out: the folder.
        config: the architecture.
        params: its parameters, on any device.
        training: how they were trained, as JSON; NaN becomes null, an infinity a string.
        start: the converted checkpoint that training started from; its tensors that the model never reads are kept for the export.
        overwrite: whether an earlier checkpoint at `out` may be replaced.

    Raises:
        OutputError: `out` may not be written.
        ConfigError: the parameters are not those of `config`.
    """
    if start is not None:
        check_apart(out, [start])
    tree, leaves = _as_float32(params), backbone_leaves(config)
    if tree.keys() != leaves.keys():
        raise ConfigError(
            f"the parameters are not those of the architecture; they differ in {', '.join(sorted(tree.keys() ^ leaves.keys()))}"
        )
    provenance = _provenance("backbone", tree, leaves, training)
    earlier = None if start is None else read_checkpoint_info(start)
    if earlier is not None:
        record = earlier.provenance["backbone"]
        provenance |= {name: record[name] for name in ("unused", "second_names", "leaves")}
        # The licence of the first checkpoint in a chain of trainings: training it further does not relax it.
        known, _ = known_licences({"backbone": record})
        kept = [name for name in ("source", "kind", "revision", "sha256", "start") if name in record]
        provenance["start"] = {**{name: record[name] for name in kept}, **licence_record(known)}
    with output_folder(out, overwrite, CHECKPOINT) as folder:
        digests = write_tree(folder / "backbone", unflatten(tree))
        if start is not None and earlier is not None:
            digests |= copy_unused(start, earlier, "backbone", folder)
        record = {**provenance, "variant": "trained here"}
        write_checkpoint_info(folder, CheckpointInfo(config, None, {"backbone": record}, {"backbone": digests}))


def torch_leaves(config: ProbeConfig) -> dict[str, Leaf]:
    """The PyTorch tensors of every leaf: `probes.{number}.mlp.{step}`, or `probes.{number}.view{1,2,…}.mlp.{step}` for separate views.

    `number` counts the probed layers in network order, `step` the modules of a Sequential, activations included.
    """
    prefixes = [f"view{view}.mlp" for view in range(1, config.view_count + 1)] if config.views == "separate" else ["mlp"]
    number = {layer: i for i, layer in enumerate(config.layer_ids)}
    names: dict[str, list[list[str]]] = {}
    for index, group in enumerate(config.groups):
        has_bias = {"linear": iter(group.biases), "norm": iter(group.norm_biases)}
        count = {"linear": 0, "norm": 0}
        for step, kind in enumerate(group.steps):
            if kind == "activation":
                continue
            tensors = {"kernel" if kind == "linear" else "scale": "weight"} | ({"bias": "bias"} if next(has_bias[kind]) else {})
            for leaf, tensor in tensors.items():
                names[f"group{index}/{kind}{count[kind]}/{leaf}"] = [
                    [f"probes.{number[layer]}.{prefix}.{step}.{tensor}" for prefix in prefixes] for layer in group.layer_ids
                ]
            count[kind] += 1
    return probe_leaves(names)


def _as_float32(params: Params) -> dict[str, np.ndarray]:
    """Path -> leaf."""
    return {path: np.asarray(leaf, np.float32) for path, leaf in flatten(dict(params)).items()}


def _provenance(part: str, tree: Mapping[str, np.ndarray], leaves: LeafMap, training: Mapping[str, object]) -> dict[str, object]:
    """The record of a trained part, in the form that `und3rstand_jax.convert.parts` writes for a converted one."""
    # There is no source file to hash: the SHA-256 covers every leaf's path, shape and values.
    digest = hashlib.sha256()
    for path in sorted(tree):
        digest.update(f"{path} {tree[path].shape}\n".encode())
        digest.update(np.ascontiguousarray(tree[path]).data)
    return {
        "source": "trained",
        "kind": "training",
        "revision": None,
        "sha256": {part: digest.hexdigest()},
        "config": None,
        "metadata": {},
        "converter": f"und3rstand_jax {own_version()}",
        "leaves": leaves_to_json(leaves),
        "unused": {},
        "second_names": {},
        "findings": [],
        "training": strict_json(training),
    }
