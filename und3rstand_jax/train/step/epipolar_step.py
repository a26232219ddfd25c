"""The training step of all epipolar probes, and their validation error.

    positions ─▶ averaged tokens and correspondences that are kept ─▶ for each layer: F, loss, gradient, update

The loss is the squared Sampson distance of a correspondence, s, for places normalised to the images, as s / (1 + s / c²): the same for
correspondences that nearly fit, and at most c² for one that does not fit at all. Without the bound, a few places near an epipole of a
wrong F, whose lines are all but undefined, would outweigh the batch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from und3rstand_jax.data.records import Batch
from und3rstand_jax.geometry.epipolar import SeenPlaces, half_side, line_distances, root_sampson, smallest_singular_value, squared_sampson
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.epipolar import EpipolarConfig, init_epipolar, read_fundamental, standardised
from und3rstand_jax.train.step.loops import over_layers
from und3rstand_jax.train.step.optimizer import Recipe, Total, TrainState, initial_train_state, update

LARGEST_DISTANCE = 0.25
"""c: an eighth of the image's longer side."""


class Kept(NamedTuple):
    """What probes are trained on, of N pairs: of each group the averaged tokens (L, N, D), and true correspondences."""

    tokens: dict[str, Float[Array, "L N _D"]]
    places: SeenPlaces

    def of(self, positions: Int[Array, " B"]) -> "Kept":
        """Those of a batch; positions beyond the last pair begin again with the first."""
        chosen = positions % self.places.seen.shape[0]
        tokens = {name: values[:, chosen] for name, values in self.tokens.items()}
        return Kept(tokens, jax.tree.map(lambda leaf: leaf[chosen], self.places))


class EpipolarLoss(NamedTuple):
    """Means over the batch: what is minimised, the root Sampson distance in normalised places, and F's smallest singular value."""

    total: Float[Array, "..."]
    root: Float[Array, "..."]
    singular: Float[Array, "..."]

    def named(self) -> dict[str, Any]:
        """Its parts as logs call them."""
        return self._asdict()


class EpipolarState(NamedTuple):
    """The whole state: steps done, and each group's probes under its name in the parameter tree."""

    step: Int[Array, ""]
    groups: dict[str, TrainState]

    @property
    def params(self) -> dict[str, Params]:
        """The probes' parameter tree."""
        return {name: group.params for name, group in self.groups.items()}

    @property
    def frozen_at(self) -> dict[str, ArrayLike]:
        """Of each group, the step at which each row was frozen, (L,); −1 for one that trains."""
        return {name: group.frozen_at for name, group in self.groups.items()}


def initial_epipolar_state(config: EpipolarConfig, recipe: Recipe, kept: Kept, seed: int) -> EpipolarState:
    """The state before the first step: fresh probes, which standardise as the kept pairs' tokens ask."""
    params = standardised(init_epipolar(config, seed), kept.tokens)
    groups = {name: jax.vmap(lambda row: initial_train_state(recipe, row))(group) for name, group in params.items()}
    return EpipolarState(jnp.zeros((), jnp.int32), groups)


def epipolar_step(
    state: EpipolarState, kept: Kept, batch: Batch, *, recipe: Recipe, total: Total
) -> tuple[EpipolarState, dict[str, EpipolarLoss]]:
    """One step on this device's share of the batch.

    Args:
        state: of all probes, the same on every device.
        kept: the training pairs', all of them on every device.
        batch: of which only the positions are read.
        recipe: how probes are updated.
        total: sums a tree's leaves over all devices.

    Returns:
        The next state, and of each group the losses over the whole batch, every entry (L,).
    """
    own = kept.of(batch.position.astype(jnp.int32))
    pairs, found = own.places.seen.shape[0], jnp.sum(own.places.seen)
    counts = total((jnp.float32(pairs), found.astype(jnp.float32)))
    new, losses = {}, {}
    for name, group in state.groups.items():

        def train_row(row: TrainState, tokens: Float[Array, "B D"]) -> tuple[TrainState, EpipolarLoss]:
            of_loss = functools.partial(_loss, tokens=tokens, places=own.places, counts=counts)
            gradient, loss = total(jax.grad(of_loss, has_aux=True)(row.params))
            return update(recipe, row, gradient, loss, state.step), loss

        rows = group.frozen_at.shape[0]
        new[name], losses[name] = over_layers(train_row, group, own.tokens[name], side_by_side=rows)
    return EpipolarState(state.step + 1, new), losses


def _loss(
    params: Params, tokens: Float[Array, "B D"], places: SeenPlaces, counts: tuple[Float[Array, ""], Float[Array, ""]]
) -> tuple[Float[Array, ""], EpipolarLoss]:
    """This device's part of a probe's loss: parts add up to the batch's."""
    matrices = read_fundamental(params, tokens)
    squared = squared_sampson(matrices, places.places1, places.places2)
    pairs, found = counts

    def mean(values: Float[Array, "B K"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(places.seen, values, 0.0)) / jnp.maximum(found, 1.0)

    loss = mean(squared / (1 + squared / LARGEST_DISTANCE**2))
    fixed = jax.lax.stop_gradient(matrices)
    root = mean(root_sampson(fixed, places.places1, places.places2))
    return loss, EpipolarLoss(loss, root, jnp.sum(smallest_singular_value(fixed)) / pairs)


def epipolar_errors(params: dict[str, Params], kept: Kept, batch: Batch, *, size: tuple[int, int]) -> dict[str, Float[Array, "_L B 2"]]:
    """Of each group, pair and view, the mean distance in pixels of the true places to their epipolar lines; NaN without a true place.

    Args:
        params: of all probes.
        kept: the held-out pairs'.
        batch: of which only the positions are read.
        size: (height, width) of the views.
    """
    own = kept.of(batch.position.astype(jnp.int32))
    seen = own.places.seen
    errors = {}
    for name, group in params.items():

        def measure(row: Params, tokens: Float[Array, "B D"]) -> Float[Array, "B 2"]:
            both = line_distances(read_fundamental(row, tokens), own.places.places1, own.places.places2)
            means = [jnp.sum(jnp.where(seen, one, 0.0), axis=-1) / jnp.sum(seen, axis=-1) for one in both]
            return jnp.stack(means, axis=-1) * half_side(size)

        errors[name] = jax.vmap(measure)(group, own.tokens[name])
    return errors
