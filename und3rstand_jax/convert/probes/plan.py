"""From the names and shapes of a probe checkpoint's tensors to its config and the source of every parameter.

    tensors ─▶ modules ─▶ MLPs with their layers and views ─▶ steps ─▶ groups of equal shape ─▶ plan
                          mapping file, known names, recogniser

No tensor is read. Every field of the config comes with a `Finding` that says how it was found. Whatever could only be guessed is reported
as a fault instead, with the table of what was seen and the option that settles it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from und3rstand_jax.checkpoint.trees import flatten
from und3rstand_jax.convert.findings import MOST_SHOWN, Complaint, Finding, How, grouped_by_pattern, in_one_line, least_certain, natural_key
from und3rstand_jax.convert.mapping import mismatches, probe_leaves
from und3rstand_jax.convert.options import ProbeOptions
from und3rstand_jax.convert.parts import PartPlan
from und3rstand_jax.convert.probes.known_names import read_known_names
from und3rstand_jax.convert.probes.mapping_file import ProbeMapping, parse_mapping, read_mapped
from und3rstand_jax.convert.probes.modules import Mlp, Reading, Views, Widths, either, is_below, parse_modules, tensor_name
from und3rstand_jax.convert.probes.recognise import recognise
from und3rstand_jax.convert.probes.settings import settle
from und3rstand_jax.convert.probes.statements import Statements, read_statements, statement_faults
from und3rstand_jax.convert.probes.steps import lay_out
from und3rstand_jax.convert.probes.table import show_table
from und3rstand_jax.convert.sources.source import Source
from und3rstand_jax.convert.wrappers import unwrapped
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import known_options, own_names
from und3rstand_jax.model.tensor_names import Leaf, Shape
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup, Step
from und3rstand_jax.support.text import listed

Group = tuple[ProbeGroup, list[Views]]
"""A group and its MLPs, [layer][view]."""


def find_probe_tensors(names: Iterable[str]) -> tuple[str, ...]:
    """The names that do not belong to a backbone, with or without a prefix, in the given order."""
    names = tuple(names)
    own = own_names(map(unwrapped, names))
    return tuple(name for name in names if unwrapped(name) not in own)


def plan_probes(source: Source, names: Iterable[str], backbone: ModelConfig, options: ProbeOptions) -> PartPlan:
    """Plans the conversion of the probes in `source`.

    Args:
        source: the checkpoint.
        names: its tensors that belong to the probes (see `find_probe_tensors`); their order does not matter.
        backbone: the model the probes read.
        options: what the caller states; it overrides everything else.

    Raises:
        OptionError: an option cannot be parsed. Whatever is contradictory, unsupported or undecided is reported in the plan's `faults`.
    """
    tensors = {name: source.tensors[name] for name in names}
    shapes = {name: info.shape for name, info in tensors.items()}
    statements = read_statements(source.config, known_options(backbone))
    mapping, complaints = parse_mapping(options.mapping_content, backbone.layer_ids)
    reading, table, unused, faults = _read_layers(shapes, backbone, statements, mapping, options)
    mlps = [mlp for views in reading.probes for mlp in views]
    probes = [tuple(mlp if mlp.fault or mlp.steps else lay_out(mlp, mapping.steps) for mlp in views) for views in reading.probes]
    settings = settle(mlps, statements, {**mapping.settings, **options.settings}, backbone)
    unordered = zip(chain.from_iterable(probes), mlps, strict=True)
    complaints += [*faults, *(Complaint(mlp.prefix, mlp.fault) for mlp, before in unordered if mlp.fault and not before.fault)]
    complaints += [*view_faults(probes), *settings.complaints, *statement_faults(mlps, len(probes), statements, backbone.patch_size)]
    if not mlps and not complaints:
        complaints.append(Complaint("there is no probe:", "the checkpoint holds no linear layers besides a backbone's"))

    config, leaves, leaf_shapes, findings = ProbeConfig(()), dict[str, Leaf](), dict[str, Shape](), list[Finding]()
    if complaints:
        problem = f"probe checkpoint: {listed(grouped_by_pattern(complaints), '; ', MOST_SHOWN, 600)}"
    else:
        groups = group_probes(reading.ids, probes)
        of_views: dict[str, Any] = {"views": "separate", "view_count": len(probes[0])} if len(probes[0]) > 1 else {"views": "shared"}
        config = ProbeConfig(tuple(group for group, _ in groups), **of_views, patch_size=backbone.patch_size, **settings.values)
        leaves = probe_leaves(group_names(groups))
        from und3rstand_jax.probes.probes import probe_shapes  # here to keep --help quick: it imports JAX

        leaf_shapes = {path: tuple(leaf.shape) for path, leaf in flatten(probe_shapes(config)).items()}
        problem = in_one_line(mismatches(leaves, leaf_shapes, tensors, unused), "the probes' tensors do not fit")
        findings = [*_shape_findings(config, reading, probes, statements), *settings.findings]
    guessed = [f for f in findings if f.how in ("inferred", "default") and "changes nothing" not in f.why]
    return PartPlan(
        part="probes",
        source=source,
        config=config,
        title=f"{len(config.layer_ids)} layers",
        leaves=leaves,
        shapes=leaf_shapes,
        findings=tuple(findings),
        unused=dict.fromkeys(unused, "belongs to no probe"),
        second_names={},
        notes=tuple(f"probe {f.field} = {f.value} ({f.how}: {f.why})" for f in guessed),
        faults=problem,
        shown_with_faults=tuple(table.splitlines()) if complaints else (),
        table=table,
    )


def _read_layers(
    shapes: Mapping[str, Shape], backbone: ModelConfig, statements: Statements, mapping: ProbeMapping, options: ProbeOptions
) -> tuple[Reading, str, tuple[str, ...], list[Complaint]]:
    """The MLPs with their layers and views, the table of everything found, the unused tensors, and every complaint about these."""
    unused = {name: "left out by the mapping file" for name in shapes if any(is_below(name, prefix) for prefix in mapping.unused)}
    complaints = [
        Complaint("the mapping file", f"leaves out {prefix!r}, below which there is no tensor")
        for prefix in mapping.unused
        if not any(is_below(name, prefix) for name in unused)
    ]
    modules, loose, faults = parse_modules({name: shape for name, shape in shapes.items() if name not in unused})
    widths = Widths.of_backbone(backbone)
    # What the caller states about layers and steps takes precedence over names, known or not.
    known = None
    if not (mapping.layers or mapping.steps is not None or options.layers):
        known = read_known_names(modules, widths, statements, backbone)
    if known:
        reading = known
    elif mapping.layers:
        reading = read_mapped(mapping, modules, widths, backbone)
        if options.layers:
            faults.append(Complaint("--probe-layers", 'is given along with a mapping file with "layers"; expected one of the two'))
    else:
        reading = recognise(modules, widths, options.layers, statements, backbone)
    complaints += [*faults, *reading.faults]

    mlps = [mlp for views in reading.probes for mlp in views]
    outside = sorted(set(modules) - {module for mlp in mlps for module in mlp.modules}, key=lambda module: natural_key(module.path))
    needed = f"from {either(widths.inputs)} inputs to {either(widths.outputs)} outputs"
    complaints += [
        Complaint(module.path, f"{module.shape} belongs to no MLP: none {needed}; a mapping file can leave it out") for module in outside
    ]
    for name in loose:
        parent = name.rpartition(".")[0]
        around = [is_below(mlp.prefix, parent) for mlp in mlps]
        # Beside some of the MLPs, or inside one, it is part of a probe; above all of them it is something else.
        if any(is_below(parent, mlp.prefix) for mlp in mlps) or (any(around) and not all(around)):
            text = "is part of a probe but not the weight or bias of a linear layer or norm; it cannot be converted"
            complaints.append(Complaint(name, text))
    unused |= dict.fromkeys(loose, "no module's weight or bias, and no MLP's own")
    ordered = {name: unused[name] for name in sorted(unused, key=natural_key)}
    return reading, show_table(reading, outside, ordered, shapes), tuple(ordered), complaints


def view_faults(probes: Sequence[Views]) -> list[Complaint]:
    """Layers whose views have MLPs of different shapes."""
    return [
        Complaint(odd.prefix, f"has a different shape from view 1's {views[0].prefix}; expected MLPs of one shape")
        for views in probes
        if not any(mlp.fault for mlp in views) and (odd := next((mlp for mlp in views if _shape(mlp) != _shape(views[0])), None))
    ]


def group_probes(ids: Sequence[str], probes: Sequence[Views]) -> list[Group]:
    """The probes grouped by shape; groups in the order of their first layer, layers in the order given."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, views in enumerate(probes):
        alike.setdefault(_shape(views[0]), []).append(i)
    groups = []
    for members in alike.values():
        widths, steps, biases, norm_biases = _shape(probes[members[0]][0])
        groups.append((ProbeGroup(tuple(ids[i] for i in members), widths, steps, biases, norm_biases), [probes[i] for i in members]))
    return groups


def _shape(mlp: Mlp) -> tuple[tuple[int, ...], tuple[Step, ...], tuple[bool, ...], tuple[bool, ...]]:
    """Widths, steps, and the biases of linear layers and norms."""
    return mlp.widths, mlp.steps, tuple(linear.has_bias for linear in mlp.linears), tuple(norm.has_bias for norm in mlp.norms)


def group_names(groups: Sequence[Group]) -> dict[str, list[list[str]]]:
    """The source names, [layer][view], of every leaf (`group0/linear1/kernel`)."""
    names = {}
    for number, (_, probes) in enumerate(groups):
        for kind, weight in (("linear", "kernel"), ("norm", "scale")):
            layers = [[mlp.linears if kind == "linear" else mlp.norms for mlp in views] for views in probes]
            for i, first in enumerate(layers[0][0]):
                for leaf, tensor in ((weight, "weight"), *([("bias", "bias")] if first.has_bias else [])):
                    names[f"group{number}/{kind}{i}/{leaf}"] = [[tensor_name(view[i].path, tensor) for view in views] for views in layers]
    return names


def _shape_findings(config: ProbeConfig, reading: Reading, probes: Sequence[Views], statements: Statements) -> list[Finding]:
    """How groups, layers, steps and patch size were found, and which of the config's keys are not understood."""
    shapes = [f"{len(group.layer_ids)} × {'→'.join(map(str, group.widths))}" for group in config.groups]
    steps = dict.fromkeys(" ".join(group.steps) for group in config.groups)
    mlps = [mlp for views in probes for mlp in views]
    how, reasons = least_certain({mlp.how for mlp in mlps}), dict.fromkeys(reason for mlp in mlps for reason in mlp.why)
    channels = sorted({group.widths[-1] // config.patch_size**2 for group in config.groups})
    stated = statements.by_field.get("patch_size", ())
    patch_how: How = "read" if stated else "inferred"
    outputs = f"the outputs are {' or '.join(map(str, channels))} channels of the backbone's patch"
    findings = [
        Finding("groups", ", ".join(shapes), "read", "the tensors' names and shapes"),
        *reading.findings,
        Finding("steps", " / ".join(steps), how, "; ".join(reasons) or "one linear layer"),
        Finding("patch_size", str(config.patch_size), patch_how, f"the config's {stated[0].key}" if stated else outputs),
    ]
    if statements.unknown:
        findings.append(Finding("config keys not understood", listed(statements.unknown), "read", "they may state more than was used"))
    return findings
