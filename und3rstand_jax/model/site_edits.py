"""From edits as written to the numbers that the model applies: one scale and one shift for each site and view.

A pattern becomes the sites it matches, chosen places become ones and zeros, and several edits of one site become one. The compiled program
depends on the sites, the kinds of places chosen and the shapes of the numbers, not on the places and numbers themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from und3rstand_jax.model.affine import Affine, SiteEdits
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edit, Edits, TokenPlaces, listed_places
from und3rstand_jax.model.output import Grids
from und3rstand_jax.model.sites import HEADS, SCORES, Site, parse_site, select_sites
from und3rstand_jax.support.errors import EditError

Numbers: TypeAlias = Any
"""A NumPy array, or a tracer where the caller gave one."""


def resolve_edits(edits: Edits | SiteEdits | None, config: ModelConfig, grids: Grids, batch: int) -> SiteEdits:
    """The edits of every site, as numbers.

    Args:
        edits: the edits as written; edits that are resolved already are returned unchanged.
        config: the backbone's config.
        grids: (rows, columns) of each view's tokens.
        batch: number of sets of views.

    Raises:
        LayerError: a site's pattern matches nothing, or names heads that do not exist.
        EditError: `edits` is not an `Edits`; a view or a chosen place does not exist; a number's shape does not fit its places; a scale is
            not finite, or a shift is NaN or +∞, or −∞ outside of scores; a site is inside a head; every key of a query is blocked; two
            edits of one site cannot be combined. Traced numbers are not checked.
    """
    if edits is None:
        return {}
    if isinstance(edits, dict):
        return edits
    if not isinstance(edits, Edits):
        raise EditError(f"edits must be an Edits, which knock_out and the like return and + combines; found {type(edits).__name__}")
    found: SiteEdits = {}
    inside_heads = config.inside_heads
    for number, edit in enumerate(edits):
        where = f"edit {number}, {edit.site!r}"
        # Sites of the same kind share these numbers, which may be large.
        made: dict[tuple[object, ...], Affine] = {}
        for site in select_sites(edit.site, config):
            if site.layer_id in inside_heads:
                raise EditError(f"{where}: values inside heads can be captured but not edited; edit a layer that the head reads")
            views = list(found.get(site.id, (None,) * len(grids)))
            for view in edit.views(len(grids)):
                shape = _shape(site, config, grids, view - 1, batch)
                kind = (site.part, shape, view, config.reads(site.layer_id), config.special_tokens(site.layer_id))
                if kind not in made:
                    made[kind] = _affine(edit, site, shape, _places(edit, site, config, grids, view - 1, where), where)
                views[view - 1] = _composed(views[view - 1], made[kind], f"{where}, view {view}")
            found[site.id] = tuple(views)
    for site_id, affines in found.items():
        for view, affine in enumerate(affines, start=1):
            if affine is not None and site_id.endswith(f".{SCORES}") and not isinstance(affine.shift, jax.core.Tracer):
                _check_open_keys(affine, f"{site_id}, view {view}")
    return found


def edited_sites(edits: Edits, config: ModelConfig) -> list[Site]:
    """Every site that an edit changes, from the config alone.

    Raises:
        LayerError: a site does not exist, or names heads that do not.
    """

    def with_heads(edit: Edit) -> str:
        heads = None if edit.heads is None else range(min(edit.heads), max(edit.heads) + 1)
        return str(parse_site(edit.site)._replace(heads=heads))

    return [site for edit in edits for site in select_sites(with_heads(edit), config)]


def first_edited_layer(edits: Edits, config: ModelConfig) -> str:
    """The first layer, in network order, whose tokens an edit can change. There must be at least one edit.

    Raises:
        LayerError: as for `edited_sites`.
    """
    return min((site.layer_id for site in edited_sites(edits, config)), key=config.layer_ids.index)


def _shape(site: Site, config: ModelConfig, grids: Grids, view: int, batch: int) -> tuple[int, ...]:
    """The shape of one view's values at a site."""
    own = config.token_count(site.layer_id, grids[view])
    width, heads = config.layer_width(site.layer_id), config.head_count(site.layer_id)
    if site.part == SCORES:
        return batch, heads, own, config.attention_keys(site.layer_id, grids, view)
    return (batch, own, heads, width // heads) if site.part == HEADS else (batch, own, width)


def _places(edit: Edit, site: Site, config: ModelConfig, grids: Grids, view: int, where: str) -> dict[str, Sequence[int] | None]:
    """The chosen indices along each kind of axis, as numbers."""
    special = len(config.special_tokens(site.layer_id))
    counts = [config.token_count(site.layer_id, grid) for grid in grids]

    def chosen(places: TokenPlaces, count: int, first: int = 0) -> Sequence[int] | None:
        if not isinstance(places, str):
            return places if places is None or not first else [first + place for place in places]
        if places == "special" and not special:
            raise EditError(f"{where}: {site.layer_id} has no special tokens; choose tokens by their indices, or patches")
        return range(first, first + special) if places == "special" else range(first + special, first + count)

    found: dict[str, Sequence[int] | None] = {"heads": edit.heads}
    found |= {name: chosen(getattr(edit, name), counts[view]) for name in ("tokens", "queries")}
    reads = config.reads(site.layer_id)
    read = {"own": [view], "others": [other for other in range(len(grids)) if other != view], "all": [*range(len(grids))]}[reads]
    if edit.key_views is not None and (absent := [number for number in edit.key_views if number - 1 not in read]):
        there = ", ".join(str(number + 1) for number in read)
        raise EditError(f"{where}: view {view + 1} attends to tokens of views {there} here; found key_views {listed_places(absent)}")
    if edit.key_views is None and not isinstance(edit.keys, str):
        return found | {"keys": edit.keys}
    keys: list[int] = []
    first = 0
    for number in read:
        if edit.key_views is None or number + 1 in edit.key_views:
            if not isinstance(edit.keys, str):
                _check_places(edit.keys or (), counts[number], f"keys of view {number + 1}", where)
            of_view = chosen(edit.keys, counts[number], first)
            keys += range(first, first + counts[number]) if of_view is None else of_view
        first += counts[number]
    return found | {"keys": keys}


def _affine(edit: Edit, site: Site, shape: tuple[int, ...], places_of: Mapping[str, Sequence[int] | None], where: str) -> Affine:
    """Scale and shift at all places of a site: 1 and 0 where nothing is chosen. Axes along which nothing differs have length 1."""
    names = {SCORES: ("", "heads", "queries", "keys"), HEADS: ("", "tokens", "heads", "")}.get(site.part or "", ("", "tokens", ""))
    axes = [places_of[name] if name else None for name in names]
    if edit.pairs is not None:
        chosen = _chosen_pairs(edit, shape, where)
    else:
        chosen = np.ones((1,) * len(shape), bool)
        for axis, (places, name) in enumerate(zip(axes, names, strict=True)):
            if places is not None:
                chosen = chosen & _along(axis, _mask(places, shape[axis], name, where), len(shape))
    numbers = []
    for value, what, neutral in ((edit.scale, "scale", 1.0), (edit.shift, "shift", 0.0)):
        value = _number(value, what, site, where)
        if edit.pairs is not None and value.size != 1:
            raise EditError(f"{where}: with pairs, {what} must be a number; found an array of shape {value.shape}")
        value = _at_all_places(value, axes, shape, what, where)
        where_chosen = jnp.where if isinstance(value, jax.Array) else np.where
        numbers.append(where_chosen(chosen, value, np.float32(neutral)))
    return Affine(*numbers)


def _chosen_pairs(edit: Edit, shape: tuple[int, ...], where: str) -> np.ndarray:
    queries, keys = zip(*edit.pairs or (), strict=True)
    for places, count, name in ((queries, shape[2], "queries"), (keys, shape[3], "keys")):
        _check_places(places, count, name, where)
    chosen = np.zeros((1, 1, *shape[2:]), bool)
    chosen[:, :, queries, keys] = True
    return chosen if edit.heads is None else chosen & _along(1, _mask(edit.heads, shape[1], "heads", where), 4)


def _mask(places: Sequence[int], count: int, name: str, where: str) -> np.ndarray:
    _check_places(places, count, name, where)
    mask = np.zeros(count, bool)
    mask[list(places)] = True
    return mask


def _check_places(places: Sequence[int], count: int, name: str, where: str) -> None:
    if beyond := [place for place in places if place >= count]:
        raise EditError(f"{where}: there are {count} {name}, 0 to {count - 1}; found {listed_places(beyond)}")


def _along(axis: int, values: np.ndarray, axes: int) -> np.ndarray:
    return values.reshape([-1 if number == axis else 1 for number in range(axes)])


def _number(value: Any, what: str, site: Site, where: str) -> Numbers:
    """A scale or shift in float32, checked unless it is traced."""
    if isinstance(value, jax.core.Tracer):
        return value.astype(jnp.float32)
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "biuf" and given.dtype != jnp.bfloat16:
            raise TypeError
        with np.errstate(over="ignore"):  # an infinity is refused below
            array = given.astype(np.float32)
    except (TypeError, ValueError):
        raise EditError(f"{where}: {what} must be a number or an array of numbers; found {type(value).__name__}") from None
    if what == "shift" and site.part == SCORES:
        if np.isnan(array).any() or np.isposinf(array).any():
            raise EditError(f"{where}: a shift of scores must be finite or −∞; found {'NaN' if np.isnan(array).any() else '+∞'}")
    elif not np.isfinite(array).all():
        remedy = "; −∞ knocks out attention, at .scores" if np.isneginf(array).any() else ""
        raise EditError(f"{where}: {what} must be finite; found {array[~np.isfinite(array)].flat[0]}{remedy}")
    return array


def _at_all_places(value: Numbers, axes: Sequence[Any], shape: tuple[int, ...], what: str, where: str) -> Numbers:
    """Expands an array over the chosen places to one over all places; its values at other places are never read."""
    chosen = tuple(length if places is None else len(places) for places, length in zip(axes, shape, strict=True))
    value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape) if value.ndim < len(shape) else value
    if value.ndim != len(shape) or any(found not in (1, expected) for found, expected in zip(value.shape, chosen, strict=True)):
        raise EditError(f"{where}: expected {what} to be a number or to broadcast to {chosen}; found shape {tuple(value.shape)}")
    for axis, places in enumerate(axes):
        if places is not None and value.shape[axis] > 1:
            rank = np.zeros(shape[axis], int)
            rank[list(places)] = np.arange(len(places))
            value = (jnp if isinstance(value, jax.Array) else np).take(value, rank, axis=axis)
    return value


def _composed(first: Affine | None, second: Affine, where: str) -> Affine:
    """One edit after another: s₂ (s₁ x + t₁) + t₂."""
    if first is None:
        return second
    traced = any(isinstance(part, jax.core.Tracer) for part in (*first, *second))
    if not traced and (np.isneginf(first.shift) & (np.asarray(second.scale) <= 0)).any():
        raise EditError(f"{where}: an earlier edit blocks a place with −∞, which this one scales by 0 or less; leave one of them out")
    # A blocked place stays blocked; scaling −∞ itself would make the scale's gradient NaN.
    xp = jnp if traced else np
    blocked = xp.isneginf(first.shift)
    with np.errstate(over="ignore"):
        scale = first.scale * second.scale
        shift = xp.where(blocked, first.shift, second.scale * xp.where(blocked, 0, first.shift)) + second.shift
    if not traced:
        finite = np.isfinite(scale).all() and (np.isfinite(shift) | blocked | np.isneginf(second.shift)).all()
        if not finite:
            raise EditError(
                f"{where}: together with an earlier edit of this site its numbers are too large for float32; leave one of them out"
            )
    return Affine(scale, shift)


def _check_open_keys(affine: Affine, where: str) -> None:
    """Refuses queries with no key left: their weights would be 0/0."""
    blocked = np.isneginf(np.asarray(affine.shift)).all(axis=-1)
    if blocked.any():
        queries = np.flatnonzero(blocked.any(axis=0).any(axis=0)).tolist()
        which = "every query" if blocked.shape[-1] == 1 else f"queries {listed_places(queries)}"
        raise EditError(f"{where}: every key of {which} is blocked, so that no weights are left; leave one open, or knock out .heads")
