"""One MLP for a layer, or one for each of its two views; and the layers' order where names only count them.

Which layer, and which view, each MLP reads.

Evidence in this order: what the caller states, what the config states, layers that the names carry, and last a running
number that counts exactly the decoder layers of the paper. Anything else stays undecided, with a complaint that says
which option settles it.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from und3rstand_jax.convert.findings import Complaint, Finding, How
from und3rstand_jax.convert.probes.layers import VIEW_WORDS, Reading, network_key, read_names, split_words
from und3rstand_jax.convert.probes.mlps import Mlp
from und3rstand_jax.convert.probes.names import Token, tokens
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.layer_ids import paper_layer_ids

# A number behind these words counts blocks or layers and is no view, even where there are two.
_COUNTED = {"enc", "encoder", "dec", "decoder", "block", "blocks", "layer", "layers"}


# What a version (v2) or a part of an output cannot be.
_SPOKEN = VIEW_WORDS - {"v", "pts", "pred"}


Views = tuple[Mlp, ...]


Name = tuple[Token, ...]


Named = tuple[Mlp, Name]


@dataclass(frozen=True)
class Slots:
    """The probes in order: one entry a layer, which holds one MLP a view (1 if shared, 2 if separate).

    `counted` is whether the names are equal but for one running number, so that its order is the layers' order.
    """

    probes: tuple[Views, ...]
    counted: bool
    how: How
    why: str
    problem: str = ""


def once_each(mlps: Sequence[Mlp], counted: bool, why: str, problem: str = "") -> Slots:
    """One MLP a layer, which serves both views."""
    for mlp in mlps:
        words = tokens(mlp.prefix)
        named = [f"{word} {number}" for word, number in zip(words, words[1:], strict=False) if word in _SPOKEN and isinstance(number, int)]
        if named and not problem:
            problem = f"{mlp.prefix} is called {named[0]}, and its layer has no probe for the other view"
    return Slots(tuple((mlp,) for mlp in mlps), counted, "inferred" if problem else "read", why, problem)


def pair_named(pairs: Sequence[Sequence[Named]]) -> Slots:
    """The two MLPs of each layer, view 1 first, by the one number that their names differ in beside the layer."""
    probes, seen = [], set()
    for (a, left), (b, right) in pairs:
        at = [i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y]
        x, y = (left[at[0]], right[at[0]]) if len(at) == 1 and len(left) == len(right) else ("", "")
        if not (isinstance(x, int) and isinstance(y, int)):
            problem = f"{a.prefix} and {b.prefix} read the same layer, and no number says which view is whose"
            return Slots(tuple((first, second) for (first, _), (second, _) in pairs), False, "inferred", "", problem)
        probes.append((a, b) if x < y else (b, a))
        seen.add((min(x, y), max(x, y), left[at[0] - 1] if at[0] else ""))
    values = {(low, high) for low, high, _ in seen}
    problem = "" if len(values) == 1 else f"the numbers that tell the views apart change from layer to layer: {sorted(values)[:3]}"
    called = all(word in VIEW_WORDS for _, _, word in seen)
    why = "the names hold each layer twice, " + ("and name the view" if called else "and a number tells the two apart")
    return Slots(tuple(probes), True, "read" if called else "inferred", why, problem)


def order_slots(mlps: Sequence[Mlp], layers: int | None) -> Slots:
    """The probes by their names' running numbers.

    Args:
        mlps: every MLP; none carries a layer's name.
        layers: how many layers were stated, if they were.
    """
    split = split_words([mlp.prefix for mlp in mlps])
    names = {mlp.prefix: tuple(word.token for word in words) for mlp, words in zip(mlps, split, strict=True)}
    ordered = sorted(mlps, key=lambda mlp: (network_key(names[mlp.prefix]), mlp.prefix))
    varying = _varying(list(names.values()))
    if varying is None:
        return once_each(ordered, False, "the names differ in more than numbers, and none is a view's")
    axes = {axis: kind for axis in varying if (kind := _view_axis(names, varying, axis)) is not None}
    called = [axis for axis, is_called in axes.items() if is_called]
    candidates = called or ([] if layers == len(mlps) else list(axes))
    if len(candidates) > 1:
        return once_each(ordered, False, "", "more than one number in the names could be that of a view")
    if not candidates:
        return once_each(ordered, _counts(names, varying), "the names hold no second index of two")
    return _two_views(ordered, names, candidates[0], bool(called))


def _counts(names: Mapping[str, Name], axes: Sequence[int]) -> bool:
    """Whether the numbers at `axes` count without a gap, so that their order can stand for the layers' order."""
    values = [sorted({int(name[axis]) for name in names.values()}) for axis in axes]
    complete = math.prod(len(column) for column in values) == len(names)
    return complete and all(column == list(range(column[0], column[0] + len(column))) for column in values)


def _varying(names: Sequence[Name]) -> list[int] | None:
    """Where names of equal words differ in a number; None if their words differ."""
    columns = list(zip(*names, strict=False))
    equal = len({len(name) for name in names}) == 1
    if not equal or any(len(set(column)) > 1 and not all(isinstance(t, int) for t in column) for column in columns):
        return None
    return [i for i, column in enumerate(columns) if len(set(column)) > 1]


def _view_axis(names: Mapping[str, Name], varying: Sequence[int], axis: int) -> bool | None:
    """Whether the number at `axis` is called a view (True) or only could be one (False); None if it is not one."""
    values = {name[axis] for name in names.values()}
    if len(values) != 2 or values not in ({0, 1}, {1, 2}):
        return None
    word = next(iter(names.values()))[axis - 1] if axis else ""
    if word in VIEW_WORDS:
        return True
    layers = len({name[:axis] + name[axis + 1 :] for name in names.values()})
    mostly_paired = 2 * (len(names) - layers) > layers
    return False if len(varying) > 1 and mostly_paired and word not in _COUNTED else None


def _two_views(ordered: Sequence[Mlp], names: Mapping[str, Name], axis: int, called: bool) -> Slots:
    layers: dict[Name, list[Mlp]] = defaultdict(list)
    for mlp in ordered:
        name = names[mlp.prefix]
        layers[name[:axis] + name[axis + 1 :]].append(mlp)
    alone = [views[0].prefix for views in layers.values() if len(views) != 2]
    if alone:
        return once_each(ordered, False, "", f"{alone[0]} has no counterpart for the other view")
    rests = {str(name): name for name in layers}
    counted = _counts(rests, _varying(list(layers)) or [])
    probes = tuple(tuple(layers[name]) for name in sorted(layers, key=network_key))
    why = "the names count two views" if called else "the names hold an index of exactly two beside the running one"
    return Slots(probes, counted, "read" if called else "inferred", why)


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
