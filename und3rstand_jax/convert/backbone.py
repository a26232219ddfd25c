"""Plans a checkpoint's backbone: its architecture, and where each of its parameters comes from. Reads no tensor values.

The model family defines what its checkpoints look like (`und3rstand_jax.model.checkpoint_form`).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from und3rstand_jax.convert.findings import Complaint, Finding, in_one_line
from und3rstand_jax.convert.mapping import mismatches, shape_text
from und3rstand_jax.convert.parts import PartPlan
from und3rstand_jax.convert.sources.source import Source
from und3rstand_jax.convert.sources.tensor_files import TensorInfo
from und3rstand_jax.convert.wrappers import by_unwrapped_name, unwrapped
from und3rstand_jax.model.checkpoint_form import Architecture, CheckpointForm, TensorUses
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import (
    KNOWN_ANCHORS,
    KNOWN_BACKBONES,
    Family,
    FoundBackbone,
    backbone_shapes,
    family_of,
    find_backbone,
    options_of,
    published_name,
)
from und3rstand_jax.model.tensor_names import Leaf, leaves_of
from und3rstand_jax.support.errors import CheckpointError


def backbone_in(names: Iterable[str]) -> FoundBackbone | None:
    """The backbone among tensors with these names, ignoring wrappers; None if there is none.

    Raises:
        CheckpointError: there are several.
    """
    return find_backbone(map(unwrapped, names))


def plan_backbone(source: Source, options: Mapping[str, Any] | None, not_ours: frozenset[str] = frozenset()) -> PartPlan:
    """Plans the conversion of the backbone in `source`.

    Args:
        source: the checkpoint.
        options: the backbone's options in its `config.json`, if it has one.
        not_ours: tensors that belong to something else (probes).

    Raises:
        CheckpointError: there is no backbone, or its config cannot be used. Tensors that do not fit are reported in the plan's `faults`.
    """
    names = by_unwrapped_name(name for name in source.tensors if name not in not_ours)
    tensors = {plain: source.tensors[name] for plain, name in names.items()}
    found = backbone_in(tensors)
    if found is None:
        raise CheckpointError(f"found no {KNOWN_BACKBONES} backbone (no tensor {KNOWN_ANCHORS}) among {len(tensors)} tensors")
    stated, where = (options, "config.json") if options is not None else (source.tensors.args, "the checkpoint's args")
    bare = {name.removeprefix(found.prefix): info.shape for name, info in tensors.items() if name.startswith(found.prefix)}
    if stated or isinstance(stated, str):
        said, family = options_of(stated, found.families)
        architecture = family.form.of_options(said, where, bare)
    else:
        architecture = _architecture_of_shapes(found.families, bare)
    config, evidence, guessed = architecture
    family = family_of(config)
    _check_size(config, family.form, tensors)
    uses = family.form.uses(config, bare)

    findings = [Finding(field, str(getattr(config, field)), *of_field) for field, of_field in evidence.items()]
    findings += [Finding(field, value, "inferred", why) for field, value, why in uses.facts]
    leaves, unused, both = _assign_tensors(uses, found.prefix, tensors)
    shapes = backbone_shapes(config)
    faults = mismatches(leaves, shapes, tensors, {*unused, *both})
    for second, first in both.items():
        if tensors[second] != tensors[first]:
            held, expected = (f"{shape_text(tensors[name].shape)} {tensors[name].dtype}" for name in (second, first))
            faults.append(Complaint(second, f"found {held}, expected {expected} like {first}, whose second name it is"))

    # Under their original names, as in the source and so in an export.
    leaves = {path: dataclasses.replace(leaf, names=tuple(names.get(name, name) for name in leaf.names)) for path, leaf in leaves.items()}
    variant = (published_name(config) if uses.is_whole else None) or uses.title
    # A default for one of them is reported.
    guesses = [finding for finding in findings if finding.how == "default" and finding.field in guessed]
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


def _architecture_of_shapes(families: tuple[Family, ...], shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The architecture by the first family that has these heads; the last family accepts any."""
    shown = (architecture for family in families if (architecture := family.form.of_shapes(shapes)) is not None)
    return next(shown)


def _assign_tensors(
    uses: TensorUses, prefix: str, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, Leaf], dict[str, str], dict[str, str]]:
    """The tensors that fill each leaf; those that no leaf needs, and why; and second name -> first name of those stored twice."""
    leaves = leaves_of(uses.stacks, prefix)
    both = {}
    for second, first in ((f"{prefix}{second}", f"{prefix}{first}") for second, first in uses.second_names.items()):
        if second in tensors and first in tensors:
            both[second] = first
        elif second in tensors:
            leaves = {path: dataclasses.replace(leaf, names=(second,)) if leaf.names == (first,) else leaf for path, leaf in leaves.items()}
    used = {name for leaf in leaves.values() for name in leaf.names}
    unused = {
        name: why
        for pattern, why in uses.unused.items()
        for name in tensors
        if name not in used and re.fullmatch(re.escape(prefix) + pattern, name)
    }
    return leaves, unused, both


def _check_size(config: ModelConfig, form: CheckpointForm, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuses a config with sizes far beyond the tensors': comparing these name by name would take forever."""
    longest = max((axis for info in tensors.values() for axis in info.shape), default=0)
    limits = dict.fromkeys(form.depths, len(tensors)) | dict.fromkeys(form.widths, longest)
    beyond = [f"{field} {getattr(config, field)}" for field, limit in limits.items() if getattr(config, field) > limit]
    if beyond:
        raise CheckpointError(
            f"the backbone's config says {', '.join(beyond)}, but there are {len(tensors)} tensors, with axes up to {longest}; "
            "use the config that belongs to them"
        )
