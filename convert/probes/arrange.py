"""Which layer, and which view, each MLP reads.

Evidence in this order: what the caller states, what the config states, layers that the names carry, and last a running
number that counts exactly the decoder layers of the paper. Anything else stays undecided, with a complaint that says
which option settles it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from convert.probes.findings import Complaint, Finding, How
from convert.probes.layers import Reading, read_names
from convert.probes.mlps import Mlp
from convert.probes.views import Named, Slots, Views, once_each, order_slots, pair_named
from und3rstand_jax.config import BackboneConfig
from und3rstand_jax.layers import paper_layer_ids

SETTLE = "state the layers with --probe-layers id,id,… (in the order of the table) or --mapping FILE"


@dataclass(frozen=True)
class Stated:
    """Layer ids that someone stated in the order of the MLPs: `how` says who, `where` in which place."""

    ids: tuple[str, ...]
    how: How
    where: str


@dataclass(frozen=True)
class Arrangement:
    """Each layer's MLPs, one a view, in network order; with complaints, `ids` may be empty and the order is the names'."""

    ids: tuple[str, ...]
    probes: tuple[Views, ...]
    findings: tuple[Finding, ...]
    complaints: tuple[Complaint, ...] = ()


def arrange(mlps: Sequence[Mlp], stated: Stated | None, backbone: BackboneConfig) -> Arrangement:
    """The layer and view of every MLP, by their names and what was stated."""
    reading = read_names([mlp.prefix for mlp in mlps], [mlp.widths[0] for mlp in mlps], backbone)
    named, slots = _slots(mlps, reading, stated, backbone)
    ids, how, why, problem = _identify(named, slots, reading, stated, backbone)
    complaints = [Complaint("views:", slots.problem)] if slots.problem else []
    complaints += [Complaint("layers:", problem)] if problem else _width_faults(ids, slots.probes, backbone)
    findings = (Finding("layer_ids", _shortened(ids), how, why), Finding("views", _sharing(slots.probes), slots.how, slots.why))
    return _in_network_order(Arrangement(ids, slots.probes, findings, tuple(complaints)), backbone)


def arrange_mapped(layers: Sequence[tuple[str, Views]], backbone: BackboneConfig) -> Arrangement:
    """The layers and views that a mapping file states."""
    ids, probes = tuple(layer for layer, _ in layers), tuple(views for _, views in layers)
    stated = {"layer_ids": _shortened(ids), "views": _sharing(probes)}
    findings = tuple(Finding(field, value, "option", "the mapping file") for field, value in stated.items())
    return _in_network_order(Arrangement(ids, probes, findings, tuple(_width_faults(ids, probes, backbone))), backbone)


def _slots(mlps: Sequence[Mlp], reading: Reading, stated: Stated | None, backbone: BackboneConfig) -> tuple[tuple[str, ...], Slots]:
    """The layers that names carry, in network order, and their MLPs; without such names the MLPs in the names' order."""
    if not reading.ids:
        return (), order_slots(mlps, len(stated.ids) if stated else None)
    groups: dict[str, list[Named]] = defaultdict(list)
    for layer, mlp, rest in zip(reading.ids, mlps, reading.rests, strict=True):
        groups[layer].append((mlp, rest))
    named = tuple(layer for layer in backbone.layer_ids if layer in groups)
    if len(mlps) == len(named):
        return named, once_each([groups[layer][0][0] for layer in named], True, "the names hold each layer once")
    return named, pair_named([groups[layer] for layer in named])


def _identify(
    named: tuple[str, ...], slots: Slots, reading: Reading, stated: Stated | None, backbone: BackboneConfig
) -> tuple[tuple[str, ...], How, str, str]:
    """The layer ids in the order of the slots, how they were found, why, and the problem if they could not be."""
    count = len(slots.probes)
    if stated:
        if len(stated.ids) != count:
            return (), stated.how, stated.where, f"{stated.where} states {len(stated.ids)} layers; the checkpoint has probes for {count}"
        if stated.how != "option" and named and set(named) != set(stated.ids):
            odd = sorted(set(named) ^ set(stated.ids))
            return (), stated.how, stated.where, f"{stated.where} and the names disagree on {', '.join(odd[:4])}; {SETTLE}"
        if stated.how == "option" or not named:
            return stated.ids, stated.how, f"{stated.where}, in the order of the MLPs", ""
    if named:
        return named, reading.how, reading.why, ""
    decoder = paper_layer_ids(backbone.dec_depth)
    if slots.counted and count == len(decoder) and all(views[0].widths[0] == backbone.dec_embed_dim for views in slots.probes):
        return decoder, "inferred", f"a running number counts {count} probes, as many as the decoder has layers", ""
    problem = reading.problem or f"nothing says which layers the {count} probes read (only {len(decoder)} would be all decoder layers)"
    return (), "default", "", f"{problem}; {SETTLE}"


def _width_faults(ids: Sequence[str], probes: Sequence[Views], backbone: BackboneConfig) -> list[Complaint]:
    return [
        Complaint(mlp.prefix, f"reads {mlp.widths[0]} channels; {layer} has {backbone.layer_width(layer)}")
        for layer, views in zip(ids, probes, strict=True)
        for mlp in views
        if not mlp.fault and mlp.widths[0] != backbone.layer_width(layer)
    ]


def _in_network_order(found: Arrangement, backbone: BackboneConfig) -> Arrangement:
    if not found.ids:
        return found
    rank = {layer: i for i, layer in enumerate(backbone.layer_ids)}
    order = sorted(range(len(found.ids)), key=lambda i: rank[found.ids[i]])
    return Arrangement(tuple(found.ids[i] for i in order), tuple(found.probes[i] for i in order), found.findings, found.complaints)


def _sharing(probes: Sequence[Views]) -> str:
    return "separate" if any(len(views) == 2 for views in probes) else "shared"


def _shortened(ids: Sequence[str]) -> str:
    return ", ".join(ids) if len(ids) <= 3 else f"{ids[0]} … {ids[-1]} ({len(ids)})"
