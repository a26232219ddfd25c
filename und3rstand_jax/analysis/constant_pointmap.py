"""The best constant: of all pointmaps that do not depend on the images, the one with the least error. A model must beat it."""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.data.example import Example
from und3rstand_jax.geometry.loss import Targets, Truth, normalised_truth
from und3rstand_jax.support.errors import DataError
from und3rstand_jax.support.progress import progress_bar

Constant = tuple[Float[np.ndarray, "_H _W 3"], ...]
"""Every view's points in view 1's frame, in units of the set's mean distance to view 1's camera."""

_SMOOTHING = 1e-4  # in the same unit: a distance d counts as √(d² + s²), so that the iteration does not get stuck on one of the points
_MOST_ITERATIONS = 200
_CONVERGED = 1e-5


def best_constant(examples: Iterable[Example], pairs: int, progress: bool = False) -> Constant:
    """For every pixel of each view, the geometric median of its normalised true points.

    All true points are in memory at once: 24·H·W bytes per pair. A pixel without a true point takes the mean of the view's other pixels.

    Args:
        examples: batches with at least `pairs` pairs in all, all of one size.
        pairs: how many of them to use, starting with the first.
        progress: whether a terminal shows a progress bar.

    Raises:
        DataError: a view has no valid pixel at all.
    """
    views: tuple[np.ndarray, ...] = ()
    done = 0
    for example in examples:
        batch = jax.device_get(_points_or_nan(example.targets))
        views = views or tuple(np.empty((pairs, *points.shape[1:]), np.float32) for points in batch)
        taken = min(len(batch[0]), pairs - done)
        for held, points in zip(views, batch, strict=True):
            held[done : done + taken] = points[:taken]
        done += taken
    assert done == pairs, (done, pairs)

    constant = [np.empty(points.shape[1:], np.float32) for points in views]
    with progress_bar("constant: medians", sum(map(len, constant)), "row", progress) as advance:
        for number, (points, medians) in enumerate(zip(views, constant, strict=True), start=1):
            for row in range(len(medians)):
                medians[row] = geometric_median(points[:, row])
                advance(1)
            missing = np.isnan(medians).any(axis=-1)
            if missing.all():
                raise DataError(f"view {number} has no valid pixel in {pairs} training pairs; check the data's depth")
            medians[missing] = medians[~missing].mean(axis=0)
    return tuple(constant)


@jax.jit
def _points_or_nan(targets: Targets) -> tuple[Array, ...]:
    truth = normalised_truth(targets)
    points = (jnp.stack(view, axis=-1) for view in truth.points)
    return tuple(jnp.where(valid[..., None], view, jnp.nan) for view, valid in zip(points, truth.valid, strict=True))


@jax.jit
def geometric_median(points: Float[Array, "N P 3"]) -> Float[Array, "P 3"]:
    """For each of P columns, the point with the least sum of distances to its N points, by Weiszfeld's algorithm (1937).

    Points with NaN are ignored; the median of a column without other points is NaN. Distances are smoothed near 0, which moves a median by
    at most about 1e-4.
    """
    valid = ~jnp.isnan(points).any(axis=-1)
    points = jnp.where(valid[..., None], points, 0.0)

    def weighted_mean(weights: Array) -> Array:
        return jnp.sum(weights[..., None] * points, axis=0) / jnp.sum(weights, axis=0)[:, None]

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, median, _ = state
        squared = jnp.sum((points - median) ** 2, axis=-1)
        new = weighted_mean(valid * lax.rsqrt(squared + _SMOOTHING**2))
        return count + 1, new, jnp.max(jnp.where(jnp.isnan(new), 0.0, jnp.abs(new - median)))

    def moving(state: tuple[Array, Array, Array]) -> Array:
        count, _, moved = state
        return (count < _MOST_ITERATIONS) & (moved > _CONVERGED)

    start = weighted_mean(valid.astype(points.dtype))
    return lax.while_loop(moving, step, (jnp.int32(0), start, jnp.float32(jnp.inf)))[1]


def constant_errors(constant: Constant, truth: Truth) -> tuple[float, ...]:
    """The normalised point error of the constant in every view: means over the pairs with a valid pixel, NaN if there are none.

    The constant is not normalised again.
    """
    errors = []
    for points, true, valid in zip(constant, truth.points, truth.valid, strict=True):
        distance = np.linalg.norm(points - np.stack(true, axis=-1), axis=-1)
        of_pairs = [distances[mask].mean() for distances, mask in zip(distance, np.asarray(valid), strict=True) if mask.any()]
        errors.append(float(np.mean(of_pairs)) if of_pairs else math.nan)
    return tuple(errors)
