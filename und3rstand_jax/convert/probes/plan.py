"""The layers that the caller or the config states, in our ids.

From the tensor names and shapes of an unknown probe checkpoint to its config and a mapping of its names.

    names and shapes ─▶ modules ─▶ MLPs ─▶ layers and views ─▶ steps ─▶ groups of equal shape ─▶ plan
                     names       mlps       arrange             steps     groups

No tensor is read. Every field of the config comes with a `Finding` that says how it was come by; what can be decided
only by guessing is not decided but raised, with the table of what was seen and the option that settles it.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from und3rstand_jax.convert.findings import Complaint, Finding, ProbeOptions, least_certain
from und3rstand_jax.convert.probes.arrange import Arrangement, Stated, arrange, arrange_mapped
from und3rstand_jax.convert.probes.checks import Seat, show_table, sibling_faults, statement_faults
from und3rstand_jax.convert.probes.layers import read_names
from und3rstand_jax.convert.probes.mapping_file import ProbeMapping, is_below, mapped_mlps, read_mapping, unknown_layer
from und3rstand_jax.convert.probes.mlps import Mlp, Widths, either, find_mlps
from und3rstand_jax.convert.probes.names import Module, natural_key, parse_modules, tell
from und3rstand_jax.convert.probes.settings import Statement, Statements, read_statements, settle
from und3rstand_jax.convert.probes.steps import Layout, group_probes, lay_out, source_names, view_faults
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.probes.config import ProbeConfig
from und3rstand_jax.support.errors import UserError


def stated_layers(probe_layers: Sequence[str], statements: Statements, backbone: BackboneConfig) -> tuple[Stated | None, list[Complaint]]:
    """The layers of --probe-layers, else those of the config, else None; and the ids that cannot be used."""
    if probe_layers:
        faults = [fault for layer in probe_layers for fault in unknown_layer(layer, backbone.layer_ids)]
        faults += [f"states {layer} more than once" for layer in dict.fromkeys(probe_layers) if list(probe_layers).count(layer) > 1]
        stated = None if faults else Stated(tuple(probe_layers), "option", "--probe-layers")
        return stated, [Complaint("--probe-layers:", fault) for fault in faults]
    for statement in statements.of.get("layers", ()):
        ids, fault = _translated(statement, backbone)
        subject = f"the config's {statement.key}"
        return (None, [Complaint(subject, fault)]) if fault else (Stated(ids, "read", subject), [])
    return None, []


def _translated(statement: Statement, backbone: BackboneConfig) -> tuple[tuple[str, ...], str]:
    """Ids as they stand, else ids in other words (dec_blocks.3.cross_attn), else patterns."""
    names = [name.strip() for name in statement.value.split(",")] if isinstance(statement.value, str) else list(statement.value)
    if set(names) <= set(backbone.layer_ids):
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        return tuple(names), f"states {twice[0]} more than once" if twice else ""
    reading = read_names(names, [0] * len(names), backbone)
    if reading.ids:
        return tuple(dict.fromkeys(reading.ids)), ""  # each layer once or, where the config names both decoders, twice
    try:
        return select_layers(names, backbone.layer_ids), ""
    except UserError as error:
        return (), f"states layers that cannot be told: {error}"


__all__ = ["Finding", "ProbeOptions", "ProbePlan", "find_probe_tensors", "plan_probes"]


Names = Mapping[str, tuple[tuple[str, ...], ...]]


_BACKBONE_STEM = re.compile(
    r"(patch_embed|enc_blocks|enc_norm|decoder_embed|dec_blocks2?|dec_norm|downstream_head[12]?|prediction_head)\.|mask_token$|"
    r"(enc|dec)_pos_embed$"
)


_WRAPPERS = re.compile(r"((backbone|model|module|net|encoder|dust3r|croco|_orig_mod)\.)*")


# These end names of nothing but a CroCo trunk, so that what precedes them is where a trunk is, whatever it is called.
_TRUNK = re.compile(r"(.*\.)?(patch_embed\.proj|(enc|dec)_blocks2?\.[0-9]+\.(attn\.qkv|cross_attn\.proj[qkv]))\.weight")


@dataclasses.dataclass(frozen=True)
class ProbePlan:
    """How a probe checkpoint is converted.

    `names` gives, for each JAX leaf, its source names [layer in group][view] (one entry a view: 1 if shared, 2 if
    separate). A leaf is "group{g}/linear{i}/kernel" or "…/bias", "group{g}/norm{j}/scale" or "…/bias", i and j counted
    from 0 in running order. `table` shows what was seen; `unused` are the tensors that belong to no MLP.
    """

    config: ProbeConfig
    names: Names
    findings: tuple[Finding, ...]
    table: str
    unused: tuple[str, ...]


def find_probe_tensors(names: Iterable[str]) -> tuple[str, ...]:
    """The names that are not those of a DUSt3R or CroCo backbone, with or without a prefix, in their order."""
    names = tuple(names)
    trunks = {match[1] or "" for match in map(_TRUNK.fullmatch, names) if match}

    def of_backbone(name: str) -> bool:
        wrapper = _WRAPPERS.match(name)
        prefixes = {*trunks, wrapper[0] if wrapper else ""}
        return any(name.startswith(prefix) and _BACKBONE_STEM.match(name[len(prefix) :]) for prefix in prefixes)

    return tuple(name for name in names if not of_backbone(name))


def plan_probes(
    tensors: Mapping[str, tuple[int, ...]], backbone: BackboneConfig, config: Mapping[str, Any] | None, options: ProbeOptions
) -> ProbePlan:
    """The config and name mapping of a probe checkpoint.

    Args:
        tensors: PyTorch names and shapes of the probes alone (see `find_probe_tensors`); their order does not matter.
        backbone: the model the probes read.
        config: the checkpoint's own config, if it has one.
        options: what the caller states; it goes before all else.

    Raises:
        UserError: something contradicts, is not supported, or cannot be told. All complaints and the table are in it.
    """
    statements = read_statements(config)
    mapping, complaints = read_mapping(options.mapping or {}, backbone.layer_ids)
    seen, faults = _see(tensors, mapping, statements, options, backbone)
    probes = seen.arrangement.probes
    mlps = [mlp for views in probes for mlp in views]
    layouts = {mlp: lay_out(mlp, mapping.steps) for mlp in mlps if not mlp.fault}
    stated = {field: value for field, value in mapping.settings.items() if getattr(options, field) is None}
    settings = settle(mlps, statements, dataclasses.replace(options, **stated), backbone)
    complaints += faults
    complaints += [Complaint(mlp.prefix, layout.fault) for mlp, layout in layouts.items() if layout.fault]
    complaints += [*view_faults(probes, layouts), *settings.complaints, *statement_faults(mlps, len(probes), statements, backbone)]
    if not mlps and not complaints:
        complaints.append(Complaint("there is no probe:", "beside a backbone's, the checkpoint holds no linear layers"))
    if complaints:
        raise UserError(f"probe checkpoint: {'; '.join(tell(complaints))}\n{seen.table}".rstrip())

    groups = group_probes(seen.arrangement.ids, probes, layouts)
    views: Literal["shared", "separate"] = "separate" if len(probes[0]) == 2 else "shared"
    result = ProbeConfig(tuple(members.group for members in groups), views=views, patch_size=backbone.patch_size, **settings.values)
    findings = (*_findings(result, seen.arrangement, layouts, statements), *settings.findings)
    return ProbePlan(result, source_names(groups, layouts), findings, seen.table, seen.unused)


@dataclasses.dataclass(frozen=True)
class _Seen:
    arrangement: Arrangement
    table: str
    unused: tuple[str, ...]


def _see(
    tensors: Mapping[str, tuple[int, ...]], mapping: ProbeMapping, statements: Statements, options: ProbeOptions, backbone: BackboneConfig
) -> tuple[_Seen, list[Complaint]]:
    """The MLPs with their layers and views, what else there is, and every complaint about either."""
    pixels = backbone.patch_size**2
    widths = Widths(tuple(dict.fromkeys((backbone.enc_embed_dim, backbone.dec_embed_dim))), (4 * pixels, 3 * pixels))
    unused = {name: "left out by the mapping file" for name in tensors if any(is_below(name, prefix) for prefix in mapping.unused)}
    idle = [prefix for prefix in mapping.unused if not any(is_below(name, prefix) for name in unused)]
    parsed = parse_modules({name: shape for name, shape in tensors.items() if name not in unused})
    arrangement, faults = _arrange(parsed.modules, widths, mapping, statements, options, backbone)
    mlps = [mlp for views in arrangement.probes for mlp in views]
    outside = sorted(set(parsed.modules) - {module for mlp in mlps for module in mlp.modules}, key=lambda module: natural_key(module.path))
    complaints = [Complaint("the mapping file", f"leaves out {prefix!r}, below which there is no tensor") for prefix in idle]
    complaints += [*parsed.complaints, *faults, *_outside_faults(outside, parsed.loose, mlps, widths)]
    unused |= dict.fromkeys(parsed.loose, "no module's weight or bias, and no MLP's own")
    ordered = {name: unused[name] for name in sorted(unused, key=natural_key)}
    return _Seen(arrangement, show_table(_seats(arrangement), outside, ordered, tensors), tuple(ordered)), complaints


def _arrange(
    modules: Sequence[Module],
    widths: Widths,
    mapping: ProbeMapping,
    statements: Statements,
    options: ProbeOptions,
    backbone: BackboneConfig,
) -> tuple[Arrangement, list[Complaint]]:
    """The MLPs with their layers and views, and every complaint about either."""
    if mapping.layers:
        layers, faults = mapped_mlps(mapping, modules, widths)
        found = arrange_mapped(layers, backbone)
        if options.probe_layers:
            faults.append(Complaint("--probe-layers", 'is given beside a mapping file with "layers"; expected one of the two'))
        mlps = [mlp for _, views in layers for mlp in views]
    else:
        stated, faults = stated_layers(options.probe_layers, statements, backbone)
        mlps = list(find_mlps(modules, widths))
        found = arrange(mlps, stated, backbone) if mlps else Arrangement((), (), ())
        faults += sibling_faults([mlp for mlp in mlps if not mlp.fault])
    return found, [*faults, *(Complaint(mlp.prefix, mlp.fault) for mlp in mlps if mlp.fault), *found.complaints]


def _outside_faults(outside: Sequence[Module], loose: Sequence[str], mlps: Sequence[Mlp], widths: Widths) -> list[Complaint]:
    """Modules in no MLP, and tensors of an unknown kind that stand in the same subtree as some of the MLPs."""
    text = (
        f"belongs to no MLP: none from {either(widths.inputs)} inputs to {either(widths.outputs)} outputs; a mapping file can leave it out"
    )
    faults = [Complaint(module.path, f"{module.shape} {text}") for module in outside]
    for name in loose:
        parent = name.rpartition(".")[0]
        around = [is_below(mlp.prefix, parent) for mlp in mlps]
        if any(is_below(parent, mlp.prefix) for mlp in mlps) or (any(around) and not all(around)):
            faults.append(Complaint(name, "is part of a probe but no linear layer's or norm's weight or bias; it cannot be converted"))
    return faults


def _seats(arrangement: Arrangement) -> list[Seat]:
    ids = arrangement.ids or ("?",) * len(arrangement.probes)
    return [
        Seat(mlp, layer, str(view) if len(views) == 2 else "both")
        for layer, views in zip(ids, arrangement.probes, strict=True)
        for view, mlp in enumerate(views, start=1)
    ]


def _findings(config: ProbeConfig, arrangement: Arrangement, layouts: Mapping[Mlp, Layout], statements: Statements) -> list[Finding]:
    """How groups, steps and patch size were found, and which of the config's keys say nothing understood."""
    shapes = [f"{len(group.layer_ids)} × {'→'.join(map(str, group.widths))}" for group in config.groups]
    steps = dict.fromkeys(" ".join(group.steps) for group in config.groups)
    reasons = dict.fromkeys(reason for layout in layouts.values() for reason in layout.why)
    how = least_certain({layout.how for layout in layouts.values()})
    stated = statements.of.get("patch_size", ())
    channels = sorted({group.widths[-1] // config.patch_size**2 for group in config.groups})
    outputs = f"the outputs are {' or '.join(map(str, channels))} channels of the backbone's patch"
    findings = [
        Finding("groups", ", ".join(shapes), "read", "the tensors' names and shapes"),
        *arrangement.findings,
        Finding("steps", " / ".join(steps), how, "; ".join(reasons) or "one linear layer"),
        Finding("patch_size", str(config.patch_size), *(("read", f"the config's {stated[0].key}") if stated else ("inferred", outputs))),
    ]
    if statements.unknown:
        findings.append(Finding("config keys not understood", ", ".join(statements.unknown), "read", "they may state more than was used"))
    return findings
