"""What epipolar probes keep of a pass, their loss, and their validation error.

The loss of a correspondence is s / (1 + s / c²), where s is its squared Sampson distance for places normalised to the images. This is
nearly s for correspondences that nearly fit, and at most c² for one that does not fit at all. Without the bound, a few places near an
epipole of a wrong F, whose lines are all but undefined, would outweigh the batch.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from und3rstand_jax.data.example import Example
from und3rstand_jax.data.records import Shape
from und3rstand_jax.geometry.epipolar import (
    SeenPlaces,
    half_side,
    line_distances,
    root_sampson,
    seen_places,
    smallest_singular_value,
    squared_sampson,
)
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.epipolar import EpipolarConfig, averages, init_epipolar, read_fundamental
from und3rstand_jax.train.step.kept_step import Kept, Reading, RowCounts, Truth

LARGEST_DISTANCE = 0.25
"""c: an eighth of the image's longer side."""


class EpipolarLoss(NamedTuple):
    """Means over the batch: what is minimised, the root Sampson distance in normalised places, and F's smallest singular value."""

    total: Float[Array, "..."]
    root: Float[Array, "..."]
    singular: Float[Array, "..."]

    def named(self) -> dict[str, Any]:
        """Its parts under their names in logs."""
        return self._asdict()


@dataclasses.dataclass(frozen=True)
class EpipolarReading(Reading):
    """Averaged tokens, and up to `correspondences` true places of each pair; views have `size` (height, width) pixels."""

    kind = SeenPlaces

    config: EpipolarConfig
    correspondences: int
    size: Shape

    def keep(self, output: BackboneOutput, example: Example, keys: Key[Array, " B"]) -> Kept:
        """See `Reading`."""
        return Kept(averages(output, self.config), seen_places(keys, example.targets, example.intrinsics[1], self.correspondences))

    def init(self, seed: int, truth: Truth) -> dict[str, Params]:
        """See `Reading`."""
        return init_epipolar(self.config, seed)

    def counts(self, truth: Truth) -> RowCounts:
        """Number of pairs, and of their correspondences."""
        seen = cast(SeenPlaces, truth).seen
        pairs, found = seen.shape[0], jnp.sum(seen)
        return jnp.float32(pairs), found.astype(jnp.float32)

    def loss(self, params: Params, tokens: Float[Array, "B D"], truth: Truth, counts: RowCounts) -> tuple[Float[Array, ""], EpipolarLoss]:
        """See `Reading`."""
        places = cast(SeenPlaces, truth)
        matrices = read_fundamental(params, tokens)
        squared = squared_sampson(matrices, places.places1, places.places2)
        pairs, found = counts

        def mean(values: Float[Array, "B K"]) -> Float[Array, ""]:
            return jnp.sum(jnp.where(places.seen, values, 0.0)) / jnp.maximum(found, 1.0)

        loss = mean(squared / (1 + squared / LARGEST_DISTANCE**2))
        fixed = jax.lax.stop_gradient(matrices)
        root = mean(root_sampson(fixed, places.places1, places.places2))
        return loss, EpipolarLoss(loss, root, jnp.sum(smallest_singular_value(fixed)) / pairs)

    def errors(self, params: Params, tokens: Float[Array, "B D"], truth: Truth) -> Float[Array, "B 2"]:
        """For each view, the mean distance in pixels from the true places to their epipolar lines; NaN without a true place."""
        places = cast(SeenPlaces, truth)
        both = line_distances(read_fundamental(params, tokens), places.places1, places.places2)
        means = [jnp.sum(jnp.where(places.seen, one, 0.0), axis=-1) / jnp.sum(places.seen, axis=-1) for one in both]
        return jnp.stack(means, axis=-1) * half_side(self.size)
