"""One MLP for a layer, or one for each of its two views; and the layers' order where names only count them."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from und3rstand_jax.convert.findings import How, Token, tokens
from und3rstand_jax.convert.probes.modules import Mlp, Views
from und3rstand_jax.convert.probes.recognise.layers import VIEW_WORDS, network_key, split_words

# A number behind these words counts blocks or layers, not views, even where there are two.
_COUNTED = {"enc", "encoder", "dec", "decoder", "block", "blocks", "layer", "layers"}

# Words that name a view and cannot be a version (v2) or a part of an output.
_SPOKEN = VIEW_WORDS - {"v", "pts", "pred"}

Name = tuple[Token, ...]


@dataclass(frozen=True)
class Slots:
    """The probes in order: one entry per layer, which holds one MLP per view (1 if shared, 2 if separate).

    `counted` is whether the names are equal except for one running number, whose order is then the layers' order.
    """

    probes: tuple[Views, ...]
    counted: bool
    how: How
    why: str
    problem: str = ""


def once_each(mlps: Sequence[Mlp], counted: bool, why: str, problem: str = "") -> Slots:
    """One MLP per layer, which serves both views."""
    for mlp in mlps:
        words = tokens(mlp.prefix)
        named = [f"{word} {number}" for word, number in zip(words, words[1:], strict=False) if word in _SPOKEN and isinstance(number, int)]
        if named and not problem:
            problem = f"{mlp.prefix} is called {named[0]}, and its layer has no probe for the other view"
    return Slots(tuple((mlp,) for mlp in mlps), counted, "inferred" if problem else "read", why, problem)


def pair_named(pairs: Sequence[Sequence[tuple[Mlp, Name]]]) -> Slots:
    """The two MLPs of each layer, view 1 first, by the only number besides the layer in which their names differ."""
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
    why = "the names have each layer twice, " + ("and name the view" if called else "and a number tells the two apart")
    return Slots(tuple(probes), True, "read" if called else "inferred", why, problem)


def order_slots(mlps: Sequence[Mlp], layers: int | None) -> Slots:
    """The probes in the order of the running numbers in their names.

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
        return once_each(ordered, _counts(list(names.values()), varying), "the names have no second index of two")

    axis = candidates[0]
    pairs: dict[Name, list[Mlp]] = defaultdict(list)
    for mlp in ordered:
        name = names[mlp.prefix]
        pairs[name[:axis] + name[axis + 1 :]].append(mlp)
    alone = [views[0].prefix for views in pairs.values() if len(views) != 2]
    if alone:
        return once_each(ordered, False, "", f"{alone[0]} has no counterpart for the other view")
    probes = tuple(tuple(pairs[name]) for name in sorted(pairs, key=network_key))
    why = "the names count two views" if called else "the names have an index of exactly two besides the running one"
    return Slots(probes, _counts(list(pairs), _varying(list(pairs)) or []), "read" if called else "inferred", why)


def _varying(names: Sequence[Name]) -> list[int] | None:
    """The positions at which names with equal words differ in a number; None if their words differ."""
    columns = list(zip(*names, strict=False))
    equal = len({len(name) for name in names}) == 1
    if not equal or any(len(set(column)) > 1 and not all(isinstance(t, int) for t in column) for column in columns):
        return None
    return [i for i, column in enumerate(columns) if len(set(column)) > 1]


def _counts(names: Sequence[Name], axes: Sequence[int]) -> bool:
    """Whether the numbers at `axes` count without a gap, so that their order can stand for the layers' order."""
    values = [sorted({int(name[axis]) for name in names}) for axis in axes]
    complete = math.prod(len(column) for column in values) == len(names)
    return complete and all(column == list(range(column[0], column[0] + len(column))) for column in values)


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
