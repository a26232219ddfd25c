"""Decides what a checkpoint's backbone is and where each of its parameters comes from. Reads no tensor values."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from und3rstand_jax.checkpoint.trees import flatten
from und3rstand_jax.convert.backbone_names import UNKNOWN_HEAD, UNUSED_PATTERNS, backbone_leaves, second_names
from und3rstand_jax.convert.findings import Complaint, Finding, How
from und3rstand_jax.convert.mapping import Leaf, complaints, raise_if_any, shape_text
from und3rstand_jax.convert.sources.tensor_files import TensorFiles, TensorInfo
from und3rstand_jax.model.config import BackboneConfig, parse_args_string
from und3rstand_jax.support.errors import UserError

_ANCHOR = "patch_embed.proj.weight"


_HEAD_DIM = 64  # of the published DUSt3R models; shapes do not tell it


UNSEEN = ("enc_num_heads", "dec_num_heads", "rope_base", "depth_mode", "conf_mode")
"""Fields that change results and that no tensor shows: a default for one of them is said aloud."""


@dataclasses.dataclass(frozen=True)
class BackbonePlan:
    """What will be read from a checkpoint, and why.

    Attributes:
        config: the architecture.
        variant: the published model it is, or what kind of trunk.
        leaves: source of every JAX leaf.
        shapes: shape of every JAX leaf.
        unused: tensors the model never reads -> reason; they are kept for the way back.
        second_names: second name -> first name of tensors that the source holds under both.
        findings: every field of the config, and how it was found.
        faults: what keeps the tensors from filling the leaves; a plan with any must not be carried out.
    """

    config: BackboneConfig
    variant: str
    leaves: Mapping[str, Leaf]
    shapes: Mapping[str, tuple[int, ...]]
    unused: Mapping[str, str]
    second_names: Mapping[str, str]
    findings: tuple[Finding, ...]
    faults: tuple[Complaint, ...]

    def check(self) -> None:
        """Raises all faults together.

        Raises:
            UserError: there are any.
        """
        raise_if_any(self.faults, "the backbone's tensors do not fit")


def backbone_prefix(tensors: Mapping[str, TensorInfo]) -> str | None:
    """What stands before every backbone tensor's name (often nothing), or None if there is no backbone.

    Raises:
        UserError: there are several backbones.
    """
    prefixes = sorted(name.removesuffix(_ANCHOR) for name in tensors if name.endswith(_ANCHOR))
    if len(prefixes) > 1:
        raise UserError(
            f"found {len(prefixes)} backbones in one checkpoint, under the prefixes {', '.join(map(repr, prefixes))}; expected one"
        )
    return prefixes[0] if prefixes else None


def plan_backbone(source: TensorFiles, options: Mapping[str, Any] | None, not_ours: frozenset[str] = frozenset()) -> BackbonePlan:
    """Plans the conversion of the backbone in `source`.

    Args:
        source: the checkpoint's tensors.
        options: its `config.json`, where it has one.
        not_ours: tensors that belong to something else (probes).

    Raises:
        UserError: there is no backbone, or its config cannot be used. Tensors that do not fit are the plan's `faults`.
    """
    tensors = {name: info for name, info in source.items() if name not in not_ours}
    prefix = backbone_prefix(tensors)
    if prefix is None:
        raise UserError(f"found no DUSt3R or CroCo backbone (no tensor {_ANCHOR}) among {len(tensors)} tensors")
    config, findings = _config(tensors, prefix, options if options is not None else source.args, options is not None)
    _check_size(config, tensors)
    has_second = any(name.startswith(f"{prefix}dec_blocks2.") for name in tensors)
    has_head = any(name.startswith(f"{prefix}downstream_head") for name in tensors)
    # A checkpoint with a head was trained on two decoders: there a missing one is damage, not CroCo.
    is_croco = not has_second and not has_head
    leaves = backbone_leaves(config, prefix, "dec_blocks" if is_croco else "dec_blocks2")
    both = {}
    for second, first in second_names(prefix).items():
        if second in tensors and first in tensors:
            both[second] = first
        elif second in tensors:
            leaves = {path: dataclasses.replace(leaf, names=(second,)) if leaf.names == (first,) else leaf for path, leaf in leaves.items()}
    unused = _unused(tensors, prefix, config, leaves)
    shapes = backbone_shapes(config)
    faults = (*complaints(leaves, shapes, tensors, {*unused, *both}), *_second_name_complaints(both, tensors))
    if is_croco:
        findings.append(Finding("second decoder", "copy of the first", "inferred", "the checkpoint has no dec_blocks2: CroCo"))
    return BackbonePlan(config, _variant(config, is_croco, has_head), leaves, shapes, unused, both, tuple(findings), faults)


@functools.cache  # tracing a model takes longer than all else in the conversion of a small one
def backbone_shapes(config: BackboneConfig) -> Mapping[str, tuple[int, ...]]:
    """Path and shape of every leaf of the model's own parameter tree, without computing it."""
    import jax
    import jax.numpy as jnp

    from und3rstand_jax.model.dust3r import DUSt3R

    view = jax.ShapeDtypeStruct((1, config.patch_size * 2, config.patch_size * 2, 3), jnp.float32)
    module = DUSt3R(config)
    tree = jax.eval_shape(lambda key, a, b: module.init(key, a, b, head=config.head_type is not None), jax.random.key(0), view, view)
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree["params"]).items()}


def _check_size(config: BackboneConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuses sizes far beyond the tensors', which would take forever to compare name by name."""
    blocks = len(tensors)
    longest = max((axis for info in tensors.values() for axis in info.shape), default=0)
    limits = {
        "enc_depth": blocks,
        "dec_depth": blocks,
        "enc_embed_dim": longest,
        "dec_embed_dim": longest,
        "patch_size": longest,
        "mlp_ratio": longest,
    }
    beyond = [f"{field} {getattr(config, field)}" for field, limit in limits.items() if getattr(config, field) > limit]
    if beyond:
        raise UserError(
            f"the backbone's config says {', '.join(beyond)}, but there are {blocks} tensors, with axes up to {longest}; "
            "take the config that belongs to them"
        )


def _config(tensors: Mapping[str, TensorInfo], prefix: str, stated: Any, from_file: bool) -> tuple[BackboneConfig, list[Finding]]:
    where = "config.json" if from_file else "the checkpoint's args"
    if isinstance(stated, str):
        config, options = BackboneConfig.from_args_string(stated), parse_args_string(stated)[1]
    elif stated:
        config, options = BackboneConfig.from_hub_config(stated), dict(stated)
    else:
        return _config_of_shapes(tensors, prefix)
    findings = []
    for field in dataclasses.fields(BackboneConfig):
        option = "pos_embed" if field.name == "rope_base" else field.name
        how: How = "read" if option in options else "default"
        why = where if option in options else f"{where} does not say"
        if field.name == "head_type" and option in options and config.head_type is None:
            why = f"{where} says {options[option]!r}, which is not implemented: the trunk is converted, its heads are set aside"
        findings.append(Finding(field.name, str(getattr(config, field.name)), how, why))
    return config, findings


def _config_of_shapes(tensors: Mapping[str, TensorInfo], prefix: str) -> tuple[BackboneConfig, list[Finding]]:
    """Without a config: what shapes tell, and the published models' values for the rest."""
    try:
        enc_dim, _, patch, _ = tensors[f"{prefix}{_ANCHOR}"].shape
        dec_dim = tensors[f"{prefix}decoder_embed.weight"].shape[0]
        mlp_ratio = tensors[f"{prefix}enc_blocks.0.mlp.fc1.weight"].shape[0] // enc_dim
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        raise UserError(
            f"there is no config, and the shapes of {prefix}{_ANCHOR}, {prefix}decoder_embed.weight or an MLP do not give the widths"
        ) from None
    inferred: dict[str, Any] = {
        "patch_size": patch,
        "enc_embed_dim": enc_dim,
        "enc_depth": _depth(tensors, f"{prefix}enc_blocks"),
        "dec_embed_dim": dec_dim,
        "dec_depth": _depth(tensors, f"{prefix}dec_blocks"),
        "mlp_ratio": mlp_ratio,
        "head_type": _head_of_names(tensors, prefix),
    }
    guessed: dict[str, Any] = {"enc_num_heads": max(1, enc_dim // _HEAD_DIM), "dec_num_heads": max(1, dec_dim // _HEAD_DIM)}
    config = BackboneConfig(**inferred, **guessed)
    findings = []
    for field in dataclasses.fields(BackboneConfig):
        value = str(getattr(config, field.name))
        if field.name in inferred:
            findings.append(Finding(field.name, value, "inferred", "names and shapes"))
        elif field.name in guessed:
            findings.append(Finding(field.name, value, "default", f"no config; {_HEAD_DIM} channels a head, as in every published model"))
        else:
            findings.append(Finding(field.name, value, "default", "no config; as in the published 512 models"))
    return config, findings


def _depth(tensors: Mapping[str, TensorInfo], stack: str) -> int:
    pattern = re.compile(re.escape(stack) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, tensors) if match), default=-1)


def _head_of_names(tensors: Mapping[str, TensorInfo], prefix: str) -> str | None:
    parts = {
        name.removeprefix(f"{prefix}downstream_head1.").split(".")[0] for name in tensors if name.startswith(f"{prefix}downstream_head1.")
    }
    return {frozenset({"proj"}): "linear", frozenset({"dpt"}): "dpt"}.get(frozenset(parts))


def _unused(tensors: Mapping[str, TensorInfo], prefix: str, config: BackboneConfig, leaves: Mapping[str, Leaf]) -> dict[str, str]:
    patterns = dict(UNUSED_PATTERNS)
    if config.head_type is None:
        patterns[UNKNOWN_HEAD] = "the heads' type is not implemented: trunk only"
    used = {name for leaf in leaves.values() for name in leaf.names}
    return {
        name: why
        for pattern, why in patterns.items()
        for name in tensors
        if name not in used and re.fullmatch(re.escape(prefix) + pattern, name)
    }


def _second_name_complaints(both: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> list[Complaint]:
    def told(info: TensorInfo) -> str:
        return f"{shape_text(info.shape)} {info.dtype}"

    return [
        Complaint(second, f"found {told(tensors[second])}, expected {told(tensors[first])} like {first}, whose second name it is")
        for second, first in both.items()
        if tensors[second] != tensors[first]
    ]


def _variant(config: BackboneConfig, is_croco: bool, has_head: bool) -> str:
    if is_croco:
        return "CroCo v2 trunk (one decoder, copied for the second view; no head)"
    if config.head_type is None:
        return "trunk alone: its heads are of a type not implemented (MASt3R?)" if has_head else "trunk alone: no heads"
    for name, published in (
        ("DUSt3R_ViTLarge_BaseDecoder_224_linear", BackboneConfig.dust3r_224_linear()),
        ("DUSt3R_ViTLarge_BaseDecoder_512_linear", BackboneConfig.dust3r_512_linear()),
        ("DUSt3R_ViTLarge_BaseDecoder_512_dpt", BackboneConfig.dust3r_512_dpt()),
    ):
        if config == published:
            return name
    return f"DUSt3R with a {config.head_type} head, of no published size"
