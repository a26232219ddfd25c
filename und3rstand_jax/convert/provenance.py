"""What a converted checkpoint records of its origin: enough to trust it, and to export it back to PyTorch."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from und3rstand_jax.convert.backbone import BackbonePlan
from und3rstand_jax.convert.findings import Finding
from und3rstand_jax.convert.mapping import Layout, Leaf
from und3rstand_jax.convert.probes.plan import ProbePlan
from und3rstand_jax.convert.sources.source import Source


def backbone_provenance(source: Source, plan: BackbonePlan, sha256: Mapping[str, str]) -> dict[str, Any]:
    """The record of a backbone: origin, leaf map, unused tensors and second names, findings."""
    return {
        **_origin(source, sha256),
        "variant": plan.variant,
        "leaves": leaves_to_json(plan.leaves),
        "unused": dict(plan.unused),
        "second_names": dict(plan.second_names),
        "findings": _findings(plan.findings),
    }


def probes_provenance(source: Source, plan: ProbePlan, leaves: Mapping[str, Leaf], sha256: Mapping[str, str]) -> dict[str, Any]:
    """The record of probes: origin, leaf map, unused tensors, findings."""
    return {
        **_origin(source, sha256),
        "leaves": leaves_to_json(leaves),
        "unused": dict.fromkeys(plan.unused, "belongs to no probe"),
        "second_names": {},
        "findings": _findings(plan.findings),
    }


def leaves_to_json(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    """Leaf map as JSON: path -> names, layout and stack axes."""
    return {
        path: {"names": list(leaf.names), "layout": dataclasses.asdict(leaf.layout), "stack": list(leaf.stack)}
        for path, leaf in leaves.items()
    }


def leaves_from_json(content: Mapping[str, Any]) -> dict[str, Leaf]:
    """The inverse of `leaves_to_json`."""
    return {
        path: Leaf(tuple(row["names"]), Layout(tuple(row["layout"]["axes"]), row["layout"]["dropped"]), tuple(row["stack"]))
        for path, row in content.items()
    }


def _origin(source: Source, sha256: Mapping[str, str]) -> dict[str, Any]:
    return {
        # A local source is recorded by its name: the folders above it are nobody else's business.
        "source": source.spec if source.kind == "hub" else Path(source.spec).resolve().name,
        "kind": source.kind,
        "revision": source.revision,
        "sha256": dict(sha256),
        # As text: it may hold infinities, which the strict JSON around it cannot.
        "config": None if source.config is None else json.dumps(source.config),
        "metadata": dict(source.tensors.metadata),
        "converter": f"und3rstand_jax {importlib.metadata.version('und3rstand_jax')}",
    }


def _findings(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [dataclasses.asdict(finding) for finding in findings]
