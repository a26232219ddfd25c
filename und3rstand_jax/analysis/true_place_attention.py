"""How much cross-attention falls on the true place: where the other view actually sees what a token shows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.view_set import Attention
from und3rstand_jax.geometry.matching import true_places
from und3rstand_jax.model.output import Grid, Grids

_NEAR = 1  # tokens, in rows and columns


class TruePlaces(NamedTuple):
    """For each of a view's N tokens, which of the other view's M tokens show the same place, to within one token; and whether any does.

    A token's place is that of its middle pixel. `seen` is False where the other view does not see it; `token` is the other view's token
    that contains the place, -1 where it is not seen.
    """

    near: Bool[np.ndarray, "N M"]
    seen: Bool[np.ndarray, " N"]
    token: Int[np.ndarray, " N"]

    @property
    def uniform_share(self) -> float:
        """The share of uniformly spread attention that falls on the true place; NaN if nothing is seen."""
        return float(self.near[self.seen].mean()) if self.seen.any() else np.nan


BothPlaces = tuple[TruePlaces, TruePlaces]
"""The true places of view 1's tokens in view 2, and of view 2's in view 1."""


def both_true_places(truth: GroundTruth, grids: Grids) -> BothPlaces:
    """The true places of both views' tokens."""
    (places_of_1, places_of_2) = set_true_places(truth, grids)
    return places_of_1[2], places_of_2[1]


def set_true_places(truth: GroundTruth, grids: Grids) -> tuple[dict[int, TruePlaces], ...]:
    """For each view, the true places of its tokens in every other view, by that view's number from 1."""

    def between(own: int, other: int) -> TruePlaces:
        # All points are in view 1's frame, and the other camera's pose maps into it.
        places = true_places((truth.views[own], truth.views[other]), truth.poses[other], truth.intrinsics[other])
        return near_tokens(places, grids[own], grids[other])

    views = range(len(truth.views))
    return tuple({other + 1: between(own, other) for other in views if other != own} for own in views)


def near_tokens(places: Float[np.ndarray, "H W 2"], here: Grid, there: Grid) -> TruePlaces:
    """The true places of the tokens of the grid `here`, from each pixel's place (x, y) in the view of the grid `there`, NaN if not seen."""
    patch = places.shape[0] // here[0]
    middles = places[patch // 2 :: patch, patch // 2 :: patch].reshape(-1, 2)
    seen = np.isfinite(middles).all(axis=-1)
    # Pixel centres are at integers: the first token spans -0.5 to patch - 0.5.
    token = np.floor((np.where(seen[:, None], middles, 0) + 0.5) / patch)
    rows, columns = np.divmod(np.arange(there[0] * there[1]), there[1])
    near = (np.abs(token[:, :1] - columns) <= _NEAR) & (np.abs(token[:, 1:] - rows) <= _NEAR)
    return TruePlaces(near, seen, np.where(seen, token[:, 1] * there[1] + token[:, 0], -1).astype(np.int32))


def stacked_places(places: Sequence[BothPlaces]) -> tuple:
    """Both views' true places, stacked over all pairs: which tokens are near, which queries are seen, and which token is the place."""
    return tuple(jax.tree.map(lambda *leaves: np.stack(leaves), *(both[view] for both in places)) for view in (0, 1))


def strongest_in(weights: Float[Array, "B H N M"], near: Bool[Array, "B N M"], seen: Bool[Array, "B N"]) -> Float[Array, "B H"]:
    """Share of the seen queries whose strongest key is near."""
    strongest = jnp.argmax(weights, axis=-1)
    chosen = jax.vmap(lambda near, keys: jnp.take_along_axis(near[None], keys[..., None], axis=-1)[..., 0])(near, strongest)
    return over_queries(chosen.astype(jnp.float32), seen)


def over_queries(values: Float[Array, "B H N"], mask: Bool[Array, "B N"]) -> Float[Array, "B H"]:
    """The mean over the queries in the mask; NaN if there are none."""
    count = jnp.sum(mask, axis=-1)[:, None]
    return jnp.where(count > 0, jnp.sum(jnp.where(mask[:, None], values, 0.0), axis=-1) / jnp.maximum(count, 1), jnp.nan)


def attention_on(attention: Sequence[Attention], places: BothPlaces) -> Float[np.ndarray, "2 blocks heads"]:
    """The share of its attention that each head of each view's decoder puts on the places: the mean over the tokens that are seen.

    NaN for a view if the other sees none of its tokens.
    """
    return _shares(attention, places, 1, lambda weights, place: (weights * place.near).sum(axis=-1)[:, place.seen].mean(axis=-1))


def attention_elsewhere(attention: Sequence[Attention], places: BothPlaces) -> Float[np.ndarray, "2 blocks heads"]:
    """The control for `attention_on`: a query's attention on the true places of the other seen queries, averaged over all such pairs.

    NaN for a view if the other sees fewer than two of its tokens.
    """

    def of_block(weights: Float[np.ndarray, "heads N M"], place: TruePlaces) -> Float[np.ndarray, " heads"]:
        seen, near, count = weights[:, place.seen], place.near[place.seen], int(place.seen.sum())
        everywhere = seen.sum(axis=1, dtype=np.float64) @ near.sum(axis=0)
        return (everywhere - seen[:, near].sum(axis=-1, dtype=np.float64)) / (count * (count - 1))

    return _shares(attention, places, 2, of_block)


def _shares(
    attention: Sequence[Attention], places: BothPlaces, least: int, of_block: Callable[[np.ndarray, TruePlaces], np.ndarray]
) -> Float[np.ndarray, "2 blocks heads"]:
    """Works a block at a time, since all weights together may take gigabytes; NaN if fewer than `least` tokens are seen."""

    def one(weights: np.ndarray, place: TruePlaces) -> np.ndarray:
        return of_block(weights, place) if place.seen.sum() >= least else np.full(len(weights), np.nan)

    return np.stack([np.stack([one(block.weights[view], place) for block in attention]) for view, place in enumerate(places)])
