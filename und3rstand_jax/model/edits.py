"""Edits: what to change while the model runs, given as places and numbers.

Every edit is x ← scale · x + shift at a site (`und3rstand_jax.model.sites`), in one view or all, at all places or some:

    edits = u3d.knock_out("decoder.4.cross_attn.heads:0", view=2) + u3d.steer("decoder.2.mlp", direction, view=2, tokens=[5, 6])
    output = backbone(view1, view2, edits=edits)

A knock-out is a scale of 0. A replacement, such as a mean ablation or a patch from another run, is a scale of 0 and a shift. Steering is
a shift alone. An attention knock-out is a shift of −∞ on scores: the softmax then distributes the weight among the other keys.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import jax
from jax.typing import ArrayLike

from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.sites import HEADS, MASS, SCORES, UPDATE, WEIGHTS, Site, parse_site
from und3rstand_jax.support.errors import EditError

View: TypeAlias = int | Literal["all", "both"]
"""Whose values are edited: a view's number from 1, or "all" (for two views, "both" means the same). In an attention these are the values
of the view whose tokens are the queries, in the encoder those of the view's own tokens."""

Places: TypeAlias = Sequence[int] | None
"""Indices from 0, without repeats; None for all."""

TokenPlaces: TypeAlias = Places | Literal["special", "patches"]
"""Which tokens: indices along the token axis of the layer's array, or all special tokens, or the tokens of all patches."""

PLACE_FIELDS = ("heads", "tokens", "queries", "keys", "pairs", "key_views")
"""The fields of an edit that choose places, except the view."""


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """x ← scale · x + shift at the chosen places of one site, or of all sites that a pattern matches; other places stay as they are.

    Attributes:
        site: an id or pattern as for `capture`. It may end in heads (`:0-3`), queries (`#5-8`) and a view (`@2`) not given separately.
        view: 1, 2, … or "all", which gives every view the same numbers.
        heads: for `.heads` and `.scores`.
        tokens: for layers, `.update` and `.heads`: special tokens first, if the layer has any, then row by row over the view's grid.
        queries, keys: for `.scores`: the tokens that attend, and the tokens attended to. In cross-attention the keys are the other views'
            tokens, concatenated view by view; in global attention they are all views' tokens.
        key_views: for `.scores`: the views, from 1, whose tokens are attended to; `keys` are then indices within each of these views.
        pairs: for `.scores`, instead of queries and keys: (query, key), for each chosen head.
        scale, shift: numbers, or arrays that broadcast to the chosen places: (B, tokens, C), (B, tokens, heads, D) or
            (B, heads, queries, keys). With `pairs`, numbers only. A shift of −∞ is allowed for scores only.

    Raises:
        EditError: the site or view is malformed, a place is chosen twice, or places are chosen that this kind of site does not have.
        LayerError: heads or queries are not written as `und3rstand_jax.model.sites` describes.
    """

    site: str
    view: View = "all"
    heads: Places = None
    tokens: TokenPlaces = None
    queries: TokenPlaces = None
    keys: TokenPlaces = None
    pairs: Sequence[tuple[int, int]] | None = None
    scale: ArrayLike = 1.0
    shift: ArrayLike = 0.0
    key_views: Places = None

    def __post_init__(self) -> None:
        pattern, at, behind = self.site.partition("@")
        object.__setattr__(self, "view", _view(self.view, self.site))
        if at:
            if not re.fullmatch("[1-9][0-9]{0,8}", behind) or self.view not in ("all", int(behind)):
                raise EditError(f"{self.site!r}: the view after @ must be 1, 2, …, and agree with view={self.view!r}")
            object.__setattr__(self, "view", int(behind))
        if not pattern.strip():
            raise EditError(f"{self.site!r} names no site; give a layer id, or a part of a step such as decoder.3.cross_attn.heads")
        site = parse_site(pattern)
        if site.heads is not None:
            if self.heads is not None:
                raise EditError(f"{self.site!r} names heads, and heads={self.heads!r} are given too; leave one of them out")
            object.__setattr__(self, "heads", tuple(site.heads))
            pattern = site.id
        if site.queries is not None:
            if self.queries is not None:
                raise EditError(f"{self.site!r} names queries, and queries={self.queries!r} are given too; leave one of them out")
            object.__setattr__(self, "queries", tuple(site.queries))
            pattern = site.id
        object.__setattr__(self, "site", pattern)
        if site.part in (WEIGHTS, MASS):
            what = "weights are" if site.part == WEIGHTS else "mass is"
            raise EditError(f"{self.site!r}: {what} read-only, since edited rows would not sum to 1; edit {site.layer_id}.scores")
        for name in PLACE_FIELDS:
            object.__setattr__(self, name, self._checked(name, site))

    @property
    def one_view(self) -> int | None:
        """The one view whose values are edited; None for all views."""
        return self.view if isinstance(self.view, int) else None

    def views(self, count: int) -> tuple[int, ...]:
        """The numbers of the views whose values are edited, out of `count` views.

        Raises:
            EditError: there is no such view.
        """
        if self.one_view is None:
            return tuple(range(1, count + 1))
        if self.one_view > count:
            raise EditError(f"{self.site!r}: there are {count} views, 1 to {count}; found view {self.one_view}")
        return (self.one_view,)

    def _checked(self, name: str, site: Site) -> tuple | str | None:
        chosen = getattr(self, name)
        if chosen is None:
            return None
        allowed = {SCORES: ("heads", "queries", "keys", "pairs", "key_views"), HEADS: ("heads", "tokens")}.get(site.part or "", ("tokens",))
        if isinstance(chosen, str) and chosen in ("special", "patches") and name in ("tokens", "queries", "keys") and name in allowed:
            return chosen
        if isinstance(chosen, str) or not isinstance(chosen, Iterable):
            raise EditError(f"{self.site!r}: {name} must be a list, such as [0]; found {chosen!r}")
        if name not in allowed:
            raise EditError(f"{self.site!r} has no {name} to choose; places there are chosen by {', '.join(allowed)}")
        if name == "pairs":
            if self.queries is not None or self.keys is not None or self.key_views is not None:
                raise EditError(f"{self.site!r}: places are chosen by pairs, or by queries and keys, not by both")
            if any(not isinstance(one, tuple | list) or len(one) != 2 for one in chosen):
                raise EditError(f"{self.site!r}: pairs must be (query, key); found {listed_places(list(chosen))}")
            places: tuple[Any, ...] = tuple(tuple(_whole(place, name, self.site) for place in one) for one in chosen)
        else:
            places = tuple(_whole(place, name, self.site) for place in chosen)
        if not places or len(set(places)) < len(places):
            raise EditError(f"{self.site!r}: {name} must name at least one place, and none twice; found {listed_places(places)}")
        return places


jax.tree_util.register_dataclass(Edit, data_fields=["scale", "shift"], meta_fields=["site", "view", *PLACE_FIELDS])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Edits:
    """Any number of edits, in the order in which those of one site are applied. Combine them with +.

    A pytree whose leaves are the scales and shifts: `jax.grad` and `jax.vmap` work on it. Places are its static part.
    """

    edits: tuple[Edit, ...] = ()

    def __add__(self, other: "Edits") -> "Edits":
        return Edits((*self.edits, *other.edits))

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)


def knock_out(site: str, view: View = "all", heads: Places = None, tokens: TokenPlaces = None) -> Edits:
    """Sets a site, or the chosen heads or tokens of it, to zero: `knock_out("decoder.4.cross_attn.heads:0", view=2)`.

    Args:
        site: an id or pattern, with heads and view appended or given separately; weights cannot be knocked out.
        view: 1, 2, … or "all".
        heads: for `.heads` and `.scores`, from 0.
        tokens: for layers, `.update` and `.heads`, from 0, or "special" or "patches".

    Raises:
        EditError, LayerError: as for `Edit`. Whether the model has the site is checked when it runs.
    """
    return Edits((Edit(site, view, heads, tokens, scale=0.0),))


def skip(step: str, view: View = "all", tokens: TokenPlaces = None) -> Edits:
    """Leaves out what a step adds to the residual stream: `skip("decoder.3.cross_attn")`.

    Args:
        step: a layer of a block, or a pattern of such layers, with a view appended (`@2`) or given separately.
        view: 1, 2, … or "all".
        tokens: the tokens that skip the step; all by default.

    Raises:
        EditError, LayerError: as for `Edit`.
    """
    layer, at, of = step.partition("@")
    return knock_out(f"{layer}.{UPDATE}{at}{of}", view, tokens=tokens)


def replace(site: str, value: ArrayLike, view: View = "all", heads: Places = None, tokens: TokenPlaces = None) -> Edits:
    """Replaces a site's values by a given value; with the mean over data, this is a mean ablation.

    Args:
        site, view, heads, tokens: as for `knock_out`.
        value: a number, or an array that broadcasts to the chosen places: (B, tokens, C) for layers and `.update`,
            (B, tokens, heads, D) for `.heads`, (B, heads, queries, keys) for `.scores`.

    Raises:
        EditError, LayerError: as for `Edit`. Whether the value fits is checked when the model runs.
    """
    return Edits((Edit(site, view, heads, tokens, scale=0.0, shift=value),))


def steer(site: str, vector: ArrayLike, view: View = "all", heads: Places = None, tokens: TokenPlaces = None) -> Edits:
    """Adds a vector to a site.

    Args:
        site, view, heads, tokens: as for `knock_out`.
        vector: (C,) for layers and `.update`, (D,) for `.heads`, or any other shape that broadcasts as for `replace`.

    Raises:
        EditError, LayerError: as for `replace`.
    """
    return Edits((Edit(site, view, heads, tokens, shift=vector),))


def block_attention(
    attention: str,
    view: View = "all",
    heads: Places = None,
    queries: TokenPlaces = None,
    keys: TokenPlaces = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    key_views: Places = None,
) -> Edits:
    """Keeps queries from attending to keys: `block_attention("decoder.*.cross_attn", keys=[0, 1])`. Every query must keep a key.

    `block_attention("global.*.self_attn", view=1, key_views=[2, 3])` keeps view 1 from seeing views 2 and 3.

    Args:
        attention: a step or pattern of steps; may end in heads (`decoder.3.cross_attn:0`) and view (`@2`).
        view: the view whose tokens are the queries.
        heads: which heads, all by default.
        queries, keys: the tokens that attend, and the tokens hidden from them; all by default.
        pairs: (query, key), instead of both.
        key_views: the views, from 1, whose tokens are hidden; `keys` are then indices within each of these views.

    Raises:
        EditError, LayerError: as for `Edit`. Whether every query has a key left is checked when the model runs.
    """
    layer, at, of = attention.partition("@")
    layer, colon, group = layer.partition(":")
    return Edits(
        (Edit(f"{layer}.{SCORES}{colon}{group}{at}{of}", view, heads, None, queries, keys, pairs, shift=-math.inf, key_views=key_views),)
    )


def patch_from(output: BackboneOutput, site: str, view: View = "all", tokens: TokenPlaces = None) -> Edits:
    """Replaces this run's values at a site by those that another run captured there: activation patching.

    Args:
        output: the other run's output, on images of the same sizes; its batch size is this run's, or 1.
        site: a captured layer, `.update` or `.heads` (with the heads it was captured with).
        view: the view whose values are replaced by its values in the other run.
        tokens: the tokens whose values are replaced; all by default.

    Raises:
        KeyError: the site was not captured; the message lists what was.
        EditError: there is no such view, or no such token.
    """
    chosen = Edit(site, view, tokens=tokens).one_view
    site = site.partition("@")[0]
    of_views = output[site]
    if chosen is not None and chosen > len(of_views):
        raise EditError(f"{site!r}: the other run has {len(of_views)} views, 1 to {len(of_views)}; found view {chosen}")
    edits = []
    for number in range(1, len(of_views) + 1) if chosen is None else (chosen,):
        values = of_views[number - 1]
        if isinstance(tokens, str):
            part = output.special(site) if tokens == "special" else output.patches(site)
            edits.append(Edit(site, number, tokens=tokens, scale=0.0, shift=part[number - 1]))
            continue
        if beyond := [token for token in tokens or () if token >= values.shape[1]]:
            raise EditError(f"{site!r}, view {number}: there are {values.shape[1]} tokens, 0 to {values.shape[1] - 1}; found {beyond}")
        edits.append(Edit(site, number, tokens=tokens, scale=0.0, shift=values if tokens is None else values[:, list(tokens)]))
    return Edits(tuple(edits))


def listed_places(places: Sequence[object]) -> str:
    """The first few places, as text for a message."""
    return f"[{', '.join(map(str, list(places)[:10]))}{', …' if len(places) > 10 else ''}]"


def _view(view: Any, site: str) -> int | Literal["all"]:
    """A view as it is stored: "all", or its number as a Python integer, since JSON does not accept NumPy's."""
    if isinstance(view, str) and view in ("all", "both"):
        return "all"
    try:
        number = 0 if isinstance(view, bool) else view.__index__()
    except (AttributeError, TypeError):
        number = 0
    if number < 1:
        raise EditError(f'{site!r}: view must be 1, 2, … or "all"; found {view!r}')
    return number


def _whole(place: Any, name: str, site: str) -> int:
    try:
        number = place.__index__()
    except (AttributeError, TypeError):
        number = -1
    if number < 0 or isinstance(place, bool):
        raise EditError(f"{site!r}: {name} must be whole numbers, counted from 0; found {place!r}")
    return number
