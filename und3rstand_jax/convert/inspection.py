"""What a conversion would do, as text: variant, configs, where everything goes, and how each decision was reached."""

from collections.abc import Iterable, Mapping, Sequence

from und3rstand_jax.convert.backbone import UNSEEN
from und3rstand_jax.convert.mapping import LeafMap
from und3rstand_jax.convert.planning import Plan, probe_leaves, probe_tree_shapes
from und3rstand_jax.convert.sources.source import Source


def describe(plan: Plan) -> str:
    """The plan for a person to read. Values are marked as read, inferred, defaulted or set by an option."""
    sections = []
    if plan.backbone is not None and plan.backbone_source is not None:
        backbone = plan.backbone
        sections += [f"Backbone: {backbone.variant}", _source_lines(plan.backbone_source), _findings(backbone.findings)]
        sections.append(_mapping(backbone.leaves, backbone.shapes))
        sections.append(_unused(backbone.unused))
    if plan.converted_backbone is not None:
        sections.append(f"Backbone: copied from the converted checkpoint {plan.converted_backbone}")
    if plan.probes is not None and plan.probes_source is not None:
        probes = plan.probes
        sections += [f"Probes: {len(probes.config.layer_ids)} layers", _source_lines(plan.probes_source), _findings(probes.findings)]
        sections += [_indent(probes.table), _mapping(probe_leaves(probes.names), probe_tree_shapes(probes))]
        sections.append(_unused(dict.fromkeys(probes.unused, "belongs to no probe")))
    return "\n\n".join(section for section in sections if section)


def notes(plan: Plan) -> list[str]:
    """What a person must know even without asking: guesses, and what was set aside."""
    found = []
    if plan.backbone is not None:
        if plan.backbone.config.head_type is None:
            found.append(f"backbone: {plan.backbone.variant}")
        found += [
            f"backbone {f.field} = {f.value} ({f.how}: {f.why})"
            for f in plan.backbone.findings
            if f.how == "default" and f.field in UNSEEN and (plan.backbone.config.head_type or not f.field.endswith("_mode"))
        ]
    if plan.probes is not None:
        found += [
            f"probe {f.field} = {f.value} ({f.how}: {f.why})"
            for f in plan.probes.findings
            if f.how in ("inferred", "default") and "changes nothing" not in f.why
        ]
    return found


def _source_lines(source: Source) -> str:
    at = f" at revision {source.revision}" if source.revision else ""
    files = ", ".join(file.name for file in source.tensors.files)
    return f"  from {source.spec}{at} ({source.kind}): {files}, {len(source.tensors)} tensors"


def _findings(findings: Iterable) -> str:
    rows = [(finding.field, finding.value, finding.how, finding.why) for finding in findings]
    return _table(("field", "value", "found", "why"), rows)


def _mapping(leaves: LeafMap, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A row a module: its source tensors, its leaves, their shapes."""
    modules: dict[tuple[str, str, int], list[tuple[str, str, str]]] = {}
    for path, leaf in leaves.items():
        source, _, kind = leaf.names[0].rpartition(".")
        if len(leaf.names) > 1:
            source = _with_star(leaf.names).rpartition(".")[0]
        module, _, part = path.rpartition("/")
        modules.setdefault((source, module, len(leaf.names)), []).append((kind, part, "×".join(map(str, shapes[path]))))
    rows = []
    for (source, module, count), parts in modules.items():
        kinds, leaf_parts, sizes = (", ".join(column) for column in zip(*parts, strict=True))
        rows.append((f"{count} × {source}" if count > 1 else source, kinds, f"{module}: {leaf_parts}", sizes))
    return _table(("source modules", "tensors", "leaves", "shapes"), rows)


def _with_star(names: tuple[str, ...]) -> str:
    """The common form of names that differ in a part: `enc_blocks.*.norm1.weight`."""
    columns = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(column[0] if len(set(column)) == 1 else "*" for column in columns)


def _unused(unused: Mapping[str, str]) -> str:
    return _table(("unused, kept for the way back", "why"), list(unused.items())) if unused else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
