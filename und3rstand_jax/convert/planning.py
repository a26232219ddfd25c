"""Opens the sources of a conversion and plans both of its parts. Nothing is written here."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from und3rstand_jax.checkpoint.format import is_checkpoint, read_checkpoint_info
from und3rstand_jax.checkpoint.trees import flatten
from und3rstand_jax.convert.backbone import BackbonePlan, backbone_prefix, plan_backbone
from und3rstand_jax.convert.findings import ProbeOptions
from und3rstand_jax.convert.mapping import LINEAR, VECTOR, Leaf, complaints, raise_if_any
from und3rstand_jax.convert.probes.plan import ProbePlan, find_probe_tensors, plan_probes
from und3rstand_jax.convert.sources.source import Source, open_source
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.support.errors import UserError


@dataclasses.dataclass(frozen=True)
class HubAccess:
    """How the hub is reached; every field as `huggingface_hub` has it."""

    revision: str | None = None
    token: str | None = None
    cache: str | None = None
    offline: bool = False

    def open(self, spec: str, revision: str | None = None) -> Source:
        """Opens any source with this access."""
        return open_source(spec, revision=revision, token=self.token, hub_cache=self.cache, offline=self.offline)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a conversion will write. A part that comes from no source is None.

    `converted_backbone` is set instead of `backbone` where the backbone is copied from a converted checkpoint.
    """

    backbone_source: Source | None = None
    backbone: BackbonePlan | None = None
    probes_source: Source | None = None
    probes: ProbePlan | None = None
    converted_backbone: Path | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """The distinct sources, the backbone's first."""
        found = [source for source in (self.backbone_source, self.probes_source) if source is not None]
        return tuple({id(source): source for source in found}.values())


@contextlib.contextmanager
def planned(repo: str, backbone: str | None, access: HubAccess, options: ProbeOptions) -> Iterator[Plan]:
    """Opens what `repo` names, finds its backbone, and plans both; the sources stay open inside the block.

    Args:
        repo: hub id, folder or file with a backbone, probes, or both.
        backbone: where a probe checkpoint's backbone is; by default the same files, else the base model that the
            config or the model card names.
        access: how the hub is reached; its revision is `repo`'s.
        options: what the caller states about the probes.

    Raises:
        UserError: anything that keeps the sources from being converted.
    """
    with contextlib.ExitStack() as stack:
        source = access.open(repo, access.revision)
        stack.enter_context(source.tensors)
        own_probes = frozenset(find_probe_tensors(source.tensors))
        holds_backbone = backbone_prefix(source.tensors) is not None
        if holds_backbone and not any(len(source.tensors[name].shape) == 2 for name in own_probes):
            own_probes = frozenset()  # strays, which the backbone's own check names
        if not own_probes:
            _refuse_probe_options(repo, backbone, options)
            plan = plan_backbone(source.tensors, source.config)
            plan.check()
            yield Plan(source, plan)
            return
        if holds_backbone and backbone is None:
            own = plan_backbone(source.tensors, _backbone_options(source.config), own_probes)
            yield Plan(source, own, source, _plan_both(own, source, own_probes, options))
            return
        place = backbone or source.base_model
        if place is None:
            raise UserError(
                f"{repo} holds probes and no backbone, and neither its config nor its model card names a base model; "
                f"convert it with one: python -m convert --repo {repo} --backbone BACKBONE --out DIR (BACKBONE: a hub id, folder or file)"
            )
        if is_checkpoint(place):
            config = read_checkpoint_info(place).backbone
            if config is None:
                raise UserError(f"the converted checkpoint {place} holds no backbone; give another --backbone")
            yield Plan(probes_source=source, probes=_plan_probes(source, own_probes, config, options), converted_backbone=Path(place))
            return
        base = access.open(place)
        stack.enter_context(base.tensors)
        if backbone_prefix(base.tensors) is None:
            raise UserError(f"the backbone {place} of {repo} holds no DUSt3R or CroCo backbone; give another with --backbone")
        plan = plan_backbone(base.tensors, base.config, frozenset(find_probe_tensors(base.tensors)))
        yield Plan(base, plan, source, _plan_both(plan, source, own_probes, options))


def _plan_both(backbone: BackbonePlan, source: Source, names: frozenset[str], options: ProbeOptions) -> ProbePlan:
    """The probes' plan; what is wrong with it and with the backbone's is raised together."""
    try:
        backbone.check()
    except UserError as of_backbone:
        try:
            _plan_probes(source, names, backbone.config, options)
        except UserError as of_probes:
            raise UserError(f"{of_backbone}; {of_probes}") from None
        raise
    return _plan_probes(source, names, backbone.config, options)


def _refuse_probe_options(repo: str, backbone: str | None, options: ProbeOptions) -> None:
    given = [field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default]
    given += ["backbone"] if backbone is not None else []
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{named} was given, but {repo} holds no probes that would need it; leave it out")


def _plan_probes(source: Source, names: frozenset[str], backbone: BackboneConfig, options: ProbeOptions) -> ProbePlan:
    shapes = {name: source.tensors[name].shape for name in source.tensors if name in names}
    plan = plan_probes(shapes, backbone, source.config, options)
    tensors = {name: source.tensors[name] for name in shapes}
    leaves = probe_leaves(plan.names)
    raise_if_any(complaints(leaves, probe_tree_shapes(plan), tensors, plan.unused), "the probes' tensors do not fit")
    return plan


def probe_leaves(names: Mapping[str, Any]) -> dict[str, Leaf]:
    """Leaf map of probes from leaf -> source names [layer][view]."""
    leaves = {}
    for path, per_layer in names.items():
        stack = (len(per_layer),) if len(per_layer[0]) == 1 else (len(per_layer), len(per_layer[0]))
        layout = LINEAR if path.endswith("kernel") else VECTOR
        leaves[path] = Leaf(tuple(name for views in per_layer for name in views), layout, stack)
    return leaves


def probe_tree_shapes(plan: ProbePlan) -> dict[str, tuple[int, ...]]:
    """Path and shape of every leaf of the probes' parameter tree, without computing it."""
    from und3rstand_jax.probes.probes import probe_shapes

    return {path: tuple(leaf.shape) for path, leaf in flatten(probe_shapes(plan.config)).items()}


def _backbone_options(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The backbone's options in the config of a checkpoint that holds both: a nested dict, or the known ones among all."""
    if config is None:
        return None
    for nested in config.values():
        if isinstance(nested, dict) and "enc_depth" in nested:
            return nested
    known = {key: value for key, value in config.items() if key in BackboneConfig.known_options()}
    return known if "enc_depth" in known else None
