"""From sources to a plan of both parts. Opens the sources; writes nothing."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from und3rstand_jax.checkpoint.format import is_checkpoint, read_checkpoint_info
from und3rstand_jax.convert.backbone import backbone_in, plan_backbone
from und3rstand_jax.convert.findings import Finding
from und3rstand_jax.convert.options import HubAccess, ProbeOptions
from und3rstand_jax.convert.parts import ConversionPlan, CopiedPart, PartPlan
from und3rstand_jax.convert.probes.plan import find_probe_tensors, plan_probes
from und3rstand_jax.convert.sources.source import Source, open_source
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import KNOWN_BACKBONES, FoundBackbone, refuse
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.text import listed


@contextlib.contextmanager
def open_plan(
    repo: str, backbone: str | None, access: HubAccess, options: ProbeOptions, *, key: str = "", progress: bool = True
) -> Iterator[ConversionPlan]:
    """Opens what `repo` names, finds its backbone, and plans both; the sources stay open inside the block.

    Args:
        repo: hub id, folder or file with a backbone, probes, or both.
        backbone: source of a probe checkpoint's backbone; by default the same files, else the base model that the
            config or the model card names.
        access: how the hub is reached; its revision applies to `repo`.
        options: what the caller states about the probes.
        key: selects one of several copies of the weights in `repo`: an entry of a pickle, or the beginning of the tensors' names.
        progress: whether downloads show progress bars.

    Raises:
        CheckpointError: the sources cannot be converted.
        ConfigError: a config describes an architecture that is not supported.
        OptionError: an option cannot be parsed, or does not fit the source.
    """
    options.check()
    _ = access.secret  # a mistake is reported before anything is read
    with contextlib.ExitStack() as stack:

        def opened(place: str, hub_only: bool) -> Source:
            # The backbone in a folder beside the probes is from the same commit.
            revision = access.revision if hub_only and place == f"{repo}/backbone" else None
            return entered(open_source(place, dataclasses.replace(access, revision=revision), hub_only=hub_only, progress=progress))

        def entered(source: Source) -> Source:
            stack.enter_context(source.tensors)
            # Before its parts are looked for: tensors of an unknown encoder could be taken for probes.
            refuse([*source.tensors, *(source.config or {})])
            return source

        source = entered(open_source(repo, access, key=key, progress=progress))
        probe_names = find_probe_tensors(source.tensors)
        held = backbone_in(source.tensors)
        # Beside a backbone, tensors without a matrix among them are strays, which the backbone's own check reports.
        if not probe_names or (held is not None and not any(len(source.tensors[name].shape) == 2 for name in probe_names)):
            given = [*options.given, *(["backbone"] if backbone is not None else [])]
            if given:
                named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
                raise OptionError(f"{named} was given, but {repo} holds no probes that would need it; leave it out")
            plan = ConversionPlan((plan_backbone(source, source.config),))
        else:
            base: PartPlan | CopiedPart
            if held is not None and backbone is None:
                base = plan_backbone(source, _backbone_options(source.config, held), frozenset(probe_names))
            else:
                base = _plan_base_model(source, backbone, opened)
            assert isinstance(base.config, ModelConfig)
            probes = plan_probes(source, probe_names, base.config, options)
            if probes.faults and held is not None and held.prefix and isinstance(base, PartPlan) and base.source is source:
                alone = f"; if that is not a probe, --key {held.prefix.rstrip('.')} converts the backbone alone"
                probes = dataclasses.replace(probes, faults=probes.faults + alone)
            plan = ConversionPlan((probes,), (base,)) if isinstance(base, CopiedPart) else ConversionPlan((base, probes))
        plan.check()
        yield dataclasses.replace(plan, parts=tuple(_with_choices(plan.parts, key)))


def _with_choices(parts: Sequence[PartPlan], key: str) -> Iterator[PartPlan]:
    """The parts; the first of each source gets a finding and a note that say what was chosen from it and what was left out."""
    told: list[Source] = []
    for part in parts:
        source, tensors = part.source, part.source.tensors
        if any(source is other for other in told):
            yield part
            continue
        told.append(source)
        findings, notes = list(part.findings), list(part.notes)
        if tensors.chosen:
            left_out = listed(f"{name} ({what})" for name, what in tensors.ignored.items()) or "nothing"
            findings.append(Finding("weights", tensors.chosen, "option" if key else "read", f"left out: {left_out}"))
            if tensors.ignored:
                notes.append(f"{source.spec}: using {tensors.chosen}; left out: {left_out}; choose other weights with --key")
        if source.ignored_paths:
            notes.append(_ignored_paths(source))
        yield dataclasses.replace(part, findings=tuple(findings), notes=tuple(notes))


def _ignored_paths(source: Source) -> str:
    paths = listed(map(repr, source.ignored_paths), most=3)
    return f"{source.spec} names {paths} as its base model, ignored: a hub repository may name hub ids, not paths on this machine"


def _plan_base_model(source: Source, stated: str | None, opened: Callable[[str, bool], Source]) -> PartPlan | CopiedPart:
    """The backbone of the probes in `source`, from the place that the caller states, else from the one that they name.

    `opened` opens a source; its second argument says whether only the hub may be used.
    """
    place = stated or source.base_model
    if place is None:
        ignored = f"{_ignored_paths(source)}; " if source.ignored_paths else ""
        raise CheckpointError(
            f"{ignored}{source.spec} holds probes but no backbone, and neither its config nor its model card names a base model; convert "
            f"it with one: python -m convert --repo {source.spec} --backbone BACKBONE --out DIR (BACKBONE: a hub id, folder or file)"
        )
    hub_only = stated is None and source.kind == "hub"
    if not hub_only and is_checkpoint(place):
        info = read_checkpoint_info(place)
        if info.backbone is None:
            raise CheckpointError(f"the converted checkpoint {place} holds no backbone; give another --backbone")
        return CopiedPart("backbone", Path(place), info.backbone, info.provenance["backbone"])
    base = opened(place, hub_only)
    if backbone_in(base.tensors) is None:
        raise CheckpointError(f"the backbone {place} of {source.spec} holds no {KNOWN_BACKBONES} backbone; give another with --backbone")
    return plan_backbone(base, base.config, frozenset(find_probe_tensors(base.tensors)))


def _backbone_options(config: Mapping[str, Any] | None, found: FoundBackbone) -> Mapping[str, Any] | None:
    """The backbone's options in the config of a checkpoint that holds both parts: a nested dict, or the known ones among all keys."""
    if config is None:
        return None
    stated = found.families[0].form.stated
    for nested in config.values():
        if isinstance(nested, dict) and stated <= nested.keys():
            return nested
    options = frozenset().union(*(family.form.options for family in found.families))
    known = {key: value for key, value in config.items() if key in options}
    return known if stated <= known.keys() else None
