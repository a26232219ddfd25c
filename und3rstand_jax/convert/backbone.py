"""Plans a checkpoint's backbone: its architecture, and where each of its parameters comes from. Reads no tensor values."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from und3rstand_jax.convert.findings import Complaint, Finding, How, in_one_line
from und3rstand_jax.convert.mapping import mismatches, shape_text
from und3rstand_jax.convert.parts import PartPlan
from und3rstand_jax.convert.sources.source import Source
from und3rstand_jax.convert.sources.tensor_files import TensorInfo
from und3rstand_jax.convert.wrappers import by_unwrapped_name, unwrapped
from und3rstand_jax.model.args_string import parse_args_string
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.dust3r.names import UNKNOWN_HEAD, UNUSED_PATTERNS, second_names
from und3rstand_jax.model.families import (
    FAMILIES,
    PUBLISHED_BACKBONES,
    backbone_leaves,
    backbone_shapes,
    config_of_options,
    family_of,
)
from und3rstand_jax.model.tensor_names import Leaf
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import listed

_ANCHOR = "patch_embed.proj.weight"
_HEAD_DIM = 64  # of the published DUSt3R models; shapes do not show it


def backbone_prefix(tensors: Mapping[str, TensorInfo]) -> str | None:
    """What stands before every backbone tensor's name (often nothing), wrappers left out; None if there is no backbone.

    Raises:
        CheckpointError: there are several backbones.
    """
    # Whole components: another model's pos_patch_embed is no second backbone.
    anchors = sorted(name for name in tensors if f".{unwrapped(name)}".endswith(f".{_ANCHOR}"))
    if len(anchors) > 1:
        prefixes = listed(repr(name.removesuffix(_ANCHOR)) for name in anchors)
        raise CheckpointError(
            f"found {len(anchors)} backbones in one checkpoint, under the prefixes {prefixes}; expected one: choose it with --key PREFIX"
        )
    return unwrapped(anchors[0]).removesuffix(_ANCHOR) if anchors else None


def plan_backbone(source: Source, options: Mapping[str, Any] | None, not_ours: frozenset[str] = frozenset()) -> PartPlan:
    """Plans the conversion of the backbone in `source`.

    Args:
        source: the checkpoint.
        options: the backbone's options in its `config.json`, where it has one.
        not_ours: tensors that belong to something else (probes).

    Raises:
        CheckpointError: there is no backbone, or its config cannot be used. Tensors that do not fit are the plan's `faults`.
    """
    names = by_unwrapped_name(name for name in source.tensors if name not in not_ours)
    tensors = {plain: source.tensors[name] for plain, name in names.items()}
    prefix = backbone_prefix(tensors)
    if prefix is None:
        raise CheckpointError(f"found no DUSt3R, MASt3R or CroCo backbone (no tensor {_ANCHOR}) among {len(tensors)} tensors")
    stated, where = (options, "config.json") if options is not None else (source.tensors.args, "the checkpoint's args")
    if stated or isinstance(stated, str):
        config, findings = _config_of_options(stated, where)
    else:
        config, findings = _config_of_shapes(tensors, prefix)
    _check_size(config, tensors)

    has_second = any(name.startswith(f"{prefix}dec_blocks2.") for name in tensors)
    has_head = any(name.startswith(f"{prefix}downstream_head") for name in tensors)
    # A checkpoint with a head was trained on two decoders: there a missing one is damage, not CroCo.
    is_croco = not has_second and not has_head
    if is_croco:
        findings.append(Finding("second decoder", "copy of the first", "inferred", "the checkpoint has no dec_blocks2: CroCo"))
    leaves, unused, both = _assign_tensors(config, prefix, tensors, is_croco)
    shapes = backbone_shapes(config)
    faults = mismatches(leaves, shapes, tensors, {*unused, *both})
    for second, first in both.items():
        if tensors[second] != tensors[first]:
            found, expected = (f"{shape_text(tensors[name].shape)} {tensors[name].dtype}" for name in (second, first))
            faults.append(Complaint(second, f"found {found}, expected {expected} like {first}, whose second name it is"))

    # In the source, and so in an export, they are called what they were.
    leaves = {path: dataclasses.replace(leaf, names=tuple(names.get(name, name) for name in leaf.names)) for path, leaf in leaves.items()}
    variant = _variant(config, is_croco, has_head)
    # A default for one of them is reported. Without a head its output modes do not matter.
    unseen = [field for field in family_of(config).unseen if config.heads or not field.endswith("_mode")]
    guesses = [finding for finding in findings if finding.how == "default" and finding.field in unseen]
    trunk_alone = () if config.heads else (f"backbone: {variant}",)
    return PartPlan(
        part="backbone",
        source=source,
        config=config,
        title=variant,
        leaves=leaves,
        shapes=shapes,
        findings=tuple(findings),
        unused={names[name]: why for name, why in unused.items()},
        second_names={names[second]: names[first] for second, first in both.items()},
        notes=(*trunk_alone, *(f"backbone {guess.field} = {guess.value} ({guess.how}: {guess.why})" for guess in guesses)),
        faults=in_one_line(faults, "the backbone's tensors do not fit"),
        variant=variant,
    )


def _assign_tensors(
    config: ModelConfig, prefix: str, tensors: Mapping[str, TensorInfo], is_croco: bool
) -> tuple[dict[str, Leaf], dict[str, str], dict[str, str]]:
    """Which tensors fill each leaf; those that no leaf needs and why; and second name -> first name of those held twice."""
    leaves = backbone_leaves(config, prefix, "dec_blocks" if is_croco else "dec_blocks2")
    both = {}
    for second, first in second_names(prefix).items():
        if second in tensors and first in tensors:
            both[second] = first
        elif second in tensors:
            leaves = {path: dataclasses.replace(leaf, names=(second,)) if leaf.names == (first,) else leaf for path, leaf in leaves.items()}
    patterns = UNUSED_PATTERNS | ({} if config.heads else {UNKNOWN_HEAD: "the heads' type is not implemented: trunk only"})
    used = {name for leaf in leaves.values() for name in leaf.names}
    unused = {
        name: why
        for pattern, why in patterns.items()
        for name in tensors
        if name not in used and re.fullmatch(re.escape(prefix) + pattern, name)
    }
    return leaves, unused, both


def _check_size(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuses sizes far beyond the tensors', which would take forever to compare name by name."""
    longest = max((axis for info in tensors.values() for axis in info.shape), default=0)
    limits = dict.fromkeys(("enc_depth", "dec_depth"), len(tensors))
    limits |= dict.fromkeys(("enc_embed_dim", "dec_embed_dim", "patch_size", "mlp_ratio"), longest)
    beyond = [f"{field} {getattr(config, field)}" for field, limit in limits.items() if getattr(config, field) > limit]
    if beyond:
        raise CheckpointError(
            f"the backbone's config says {', '.join(beyond)}, but there are {len(tensors)} tensors, with axes up to {longest}; "
            "use the config that belongs to them"
        )


def _config_of_options(stated: Mapping[str, Any] | str, where: str) -> tuple[ModelConfig, list[Finding]]:
    """The architecture that options state, or a model call as a string; `where` they stand is said in the findings."""
    config = config_of_options(stated)
    options = parse_args_string(stated)[1] if isinstance(stated, str) else stated
    findings = []
    for field in dataclasses.fields(config):
        option = family_of(config).option_of.get(field.name, field.name)
        how: How = "read" if option in options else "default"
        why = where if option in options else f"{where} does not say"
        if field.name == "head_type" and option in options and not config.heads:
            why = f"{where} says {options[option]!r}, which is not implemented: the trunk is converted, its heads are set aside"
        findings.append(Finding(field.name, str(getattr(config, field.name)), how, why))
    return config, findings


def _config_of_shapes(tensors: Mapping[str, TensorInfo], prefix: str) -> tuple[ModelConfig, list[Finding]]:
    """Without a config: what shapes show, and the published models' values for the rest."""
    try:
        enc_dim, _, patch, _ = tensors[f"{prefix}{_ANCHOR}"].shape
        dec_dim = tensors[f"{prefix}decoder_embed.weight"].shape[0]
        mlp_ratio = tensors[f"{prefix}enc_blocks.0.mlp.fc1.weight"].shape[0] // enc_dim
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        raise CheckpointError(
            f"there is no config, and the shapes of {prefix}{_ANCHOR}, {prefix}decoder_embed.weight or an MLP do not show the widths"
        ) from None

    def depth(stack: str) -> int:
        pattern = re.compile(re.escape(f"{prefix}{stack}") + r"\.(\d+)\.")
        return 1 + max((int(match[1]) for match in map(pattern.match, tensors) if match), default=-1)

    before = f"{prefix}downstream_head1."
    head = {name.removeprefix(before): info.shape for name, info in tensors.items() if name.startswith(before)}
    shown = ((family, fields) for family in FAMILIES if (fields := family.head_fields(head)) is not None)
    family, of_head = next(shown, (FAMILIES[-1], {"head_type": None}))  # None: not implemented
    inferred: dict[str, Any] = {
        "patch_size": patch,
        "enc_embed_dim": enc_dim,
        "enc_depth": depth("enc_blocks"),
        "dec_embed_dim": dec_dim,
        "dec_depth": depth("dec_blocks"),
        "mlp_ratio": mlp_ratio,
        **of_head,
    }
    guessed: dict[str, Any] = {"enc_num_heads": max(1, enc_dim // _HEAD_DIM), "dec_num_heads": max(1, dec_dim // _HEAD_DIM)}
    config = family.config(**inferred, **guessed)
    evidence: dict[str, tuple[How, str]] = dict.fromkeys(inferred, ("inferred", "names and shapes"))
    evidence |= dict.fromkeys(guessed, ("default", f"no config; {_HEAD_DIM} channels a head, as in every published model"))
    rest: tuple[How, str] = ("default", "no config; as in the published 512 models")
    evidence |= {field: rest for field in family.unseen if field in of_head}
    names = [field.name for field in dataclasses.fields(config)]
    return config, [Finding(name, str(getattr(config, name)), *evidence.get(name, rest)) for name in names]


def _variant(config: ModelConfig, is_croco: bool, has_head: bool) -> str:
    """The published model it is, or what kind of model."""
    if is_croco:
        return "CroCo v2 trunk (one decoder, copied for the second view; no head)"
    if not config.heads:
        return "trunk alone: its heads are of a type not implemented" if has_head else "trunk alone: no heads"
    published = next((name for name, known in PUBLISHED_BACKBONES.items() if config == known), None)
    return published or f"{family_of(config).title} with a {config.head_type} head, of no published size"
