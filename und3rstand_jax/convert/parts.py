"""The plan of a conversion, part by part: where a backbone or probes come from and what will be written, as text and as a record.

The record is enough to trust a converted checkpoint and to export it back to PyTorch.
"""

import dataclasses
import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from und3rstand_jax.convert.findings import Finding
from und3rstand_jax.convert.licences import licence_record
from und3rstand_jax.convert.mapping import leaves_to_json
from und3rstand_jax.convert.sources.source import Source
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.tensor_names import LeafMap, Shape
from und3rstand_jax.probes.config import ProbeConfig
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import JsonObject, listed, printable, text_table
from und3rstand_jax.support.versions import own_version

_MOST_ROWS = 200
"""Rows of a table of tensors in a plan; DUSt3R's longest has 40."""

PartName = Literal["backbone", "probes"]


@dataclass(frozen=True)
class PartPlan:
    """A part that is converted from a source, with the reasons for every decision.

    Attributes:
        part: which part: the name of its tree, and of its entries in `config.json`.
        source: the checkpoint.
        config: the architecture.
        title: what it is, for display.
        leaves: source of every JAX leaf.
        shapes: shape of every JAX leaf.
        findings: every field of the config, and how it was found.
        unused: tensors the model never reads -> reason; they are kept for the export.
        second_names: second name -> first name, for tensors that the source holds under both.
        notes: guesses and omissions that are always reported.
        faults: everything that keeps the tensors from filling the leaves, in one line; a plan with faults must not be carried out.
        shown_with_faults: further lines for the person who must settle them.
        variant: the published model or the kind of trunk, as recorded in the provenance; "" for probes.
        table: what was recognised in unknown names, for display; "" if the names are known.
    """

    part: PartName
    source: Source
    config: ModelConfig | ProbeConfig
    title: str
    leaves: LeafMap
    shapes: Mapping[str, Shape]
    findings: tuple[Finding, ...]
    unused: Mapping[str, str]
    second_names: Mapping[str, str]
    notes: tuple[str, ...]
    faults: str
    shown_with_faults: tuple[str, ...] = ()
    variant: str = ""
    table: str = ""

    @property
    def read_bytes(self) -> int:
        """Bytes read from the source for the leaves; a tensor that fills two counts twice."""
        return sum(self.source.tensors[name].nbytes for leaf in self.leaves.values() for name in leaf.names)

    @property
    def result_bytes(self) -> int:
        """Bytes written, uncompressed."""
        return self.read_bytes + sum(self.source.tensors[name].nbytes for name in self.unused)


@dataclass(frozen=True)
class CopiedPart:
    """A part that is copied from a converted checkpoint, with its config and provenance there."""

    part: PartName
    folder: Path
    config: ModelConfig
    provenance: Mapping[str, Any]

    @property
    def result_bytes(self) -> int:
        """Bytes copied."""
        return sum(file.stat().st_size for file in (self.folder / self.part).rglob("*") if file.is_file())


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write: parts copied, and parts converted from sources, the backbone first."""

    parts: tuple[PartPlan, ...]
    copied: tuple[CopiedPart, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """The distinct sources, the backbone's first."""
        return tuple({id(part.source): part.source for part in self.parts}.values())

    @property
    def local_paths(self) -> list[Path]:
        """The local folders and files that are read."""
        return [*(Path(source.spec) for source in self.sources if source.kind != "hub"), *(part.folder for part in self.copied)]

    @property
    def result_bytes(self) -> int:
        """Bytes the result takes, uncompressed."""
        return sum(part.result_bytes for part in self.copied) + sum(part.result_bytes for part in self.parts)

    def check(self) -> None:
        """Raises one error for the faults of all parts.

        Raises:
            CheckpointError: a part has faults.
        """
        faults = [part.faults for part in self.parts if part.faults]
        if faults:
            raise CheckpointError("; ".join(faults), *(line for part in self.parts for line in part.shown_with_faults))


def describe(plan: ConversionPlan) -> str:
    """The plan as readable text. Values are marked as read, inferred, defaulted or set by an option."""
    sections = [f"{part.part.capitalize()}: copied from the converted checkpoint {printable(part.folder)}" for part in plan.copied]
    for part in plan.parts:
        source = part.source
        at = printable(f" at revision {source.revision}" if source.revision else "")
        files = printable(listed(file.name for file in source.tensors.files))
        findings = [(finding.field, finding.value, finding.how, finding.why) for finding in part.findings]
        sections += [
            f"{part.part.capitalize()}: {printable(part.title)}",
            f"  from {printable(source.spec)}{at} ({source.kind}): {files}, {len(source.tensors)} tensors",
            text_table(("field", "value", "found", "why"), findings, indent=2),
            textwrap.indent(part.table, "  "),
            text_table(("source modules", "tensors", "leaves", "shapes"), _mapping_rows(part), indent=2),
        ]
        if part.unused:
            rows = _unused_rows(part.unused)
            more = [(f"and {len(rows) - _MOST_ROWS:,} more", "")] if len(rows) > _MOST_ROWS else []
            sections.append(text_table(("unused, kept for the export", "why"), [*rows[:_MOST_ROWS], *more], indent=2))
    return "\n\n".join(section for section in sections if section)


def plan_json(plan: ConversionPlan) -> JsonObject:
    """The same as data, with every tensor; docs/command_output.md explains the keys."""
    copied = [{"part": part.part, "copied_from": part.folder.name} for part in plan.copied]
    return {"parts": [*copied, *map(_part_json, plan.parts)], "result_bytes": plan.result_bytes}


def _part_json(part: PartPlan) -> JsonObject:
    source = part.source
    return {
        "part": part.part,
        "title": part.title,
        "source": source.spec,
        "kind": source.kind,
        "revision": source.revision,
        "files": [file.name for file in source.tensors.files],
        "tensors": len(source.tensors),
        "findings": [dataclasses.asdict(finding) for finding in part.findings],
        "leaves": {path: {"names": leaf.names, "shape": part.shapes[path]} for path, leaf in part.leaves.items()},
        "unused": part.unused,
        "second_names": part.second_names,
        "notes": part.notes,
    }


def _unused_rows(unused: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name of, and reason for, every unused tensor; if there are too many to show, those of one part of the model share a row."""
    if len(unused) <= _MOST_ROWS:
        return list(unused.items())
    parts = {name: name.split(".") for name in unused}
    common = len(os.path.commonprefix(list(parts.values())))
    alike: dict[tuple[str, str], list[str]] = {}
    for name, why in unused.items():
        alike.setdefault((".".join(parts[name][: common + 1]), why), []).append(name)
    return [(f"{part}.* ({len(names)} tensors)" if len(names) > 1 else names[0], why) for (part, why), names in alike.items()]


def _mapping_rows(part: PartPlan) -> list[tuple[str, ...]]:
    """A row per module: its source tensors, its leaves, their shapes."""
    modules: dict[tuple[str, str, int], list[tuple[str, str, str]]] = {}
    for path, leaf in part.leaves.items():
        # The common form of names that differ in a part: `enc_blocks.*.norm1.weight`.
        columns = zip(*(name.split(".") for name in leaf.names), strict=False)
        source, _, kind = ".".join(column[0] if len(set(column)) == 1 else "*" for column in columns).rpartition(".")
        module, _, leaf_part = path.rpartition("/")
        shape = "×".join(map(str, part.shapes[path]))
        modules.setdefault((source, module, len(leaf.names)), []).append((kind, leaf_part, shape))
    rows: list[tuple[str, ...]] = []
    for (source, module, count), tensors in modules.items():
        kinds, leaves, shapes = (", ".join(column) for column in zip(*tensors, strict=True))
        rows.append((f"{count} × {source}" if count > 1 else source, kinds, f"{module}: {leaves}", shapes))
    return rows


def part_provenance(part: PartPlan, sha256: Mapping[str, str]) -> dict[str, Any]:
    """The record of a part as JSON: origin, leaf map, unused tensors and second names, findings.

    `sha256` is file name -> digest, for the source's files.
    """
    source = part.source
    return {
        # A local source is recorded by its name alone: the folders above it are private.
        "source": source.spec if source.kind == "hub" else Path(source.spec).resolve().name,
        "kind": source.kind,
        "revision": source.revision,
        "sha256": dict(sha256),
        **licence_record(source.licences),
        # As text: it may hold infinities, which the strict JSON around it cannot.
        "config": None if source.config is None else json.dumps(source.config),
        "metadata": dict(source.tensors.metadata),
        "converter": f"und3rstand_jax {own_version()}",
        **({"variant": part.variant} if part.variant else {}),
        "leaves": leaves_to_json(part.leaves),
        "unused": dict(part.unused),
        "second_names": dict(part.second_names),
        "findings": [dataclasses.asdict(finding) for finding in part.findings],
    }
