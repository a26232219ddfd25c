"""Errors of predicted pointmaps, for each set of views separately, so that they do not depend on how sets are batched.

The values of invalid pixels, NaN included, change nothing. A view without a valid pixel has the error NaN, to be left out of
averages. A set whose prediction is not finite in a valid pixel (or too large to be squared) has the error infinity in all views, which
must not be left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.loss import Points, Target, Targets, Truth, confidence_sums, in_camera1, invariant_error, normalised_truth
from und3rstand_jax.model.heads import Pointmap, planes_of

_LEAST = 1e-8


class ViewErrors(NamedTuple):
    """Errors of one view, for each set.

    `invariant` is the test metric (`geometry.loss.invariant_error`) in the ground truth's unit. `relative_mean` and `relative_median` are
    the mean and median of ‖s·p − g‖ / ‖g‖ over the view's valid pixels. The predicted point p and the true point g are in the frame of view
    1's camera; s is the ratio of their mean distances to the origin over all views' valid pixels, as in training.
    """

    invariant: Float[Array, " B"]
    relative_mean: Float[Array, " B"]
    relative_median: Float[Array, " B"]


def set_errors(preds: Sequence[Pointmap], targets: Targets) -> tuple[ViewErrors, ...]:
    """The errors of every view of each set. Pure, for use under `jit`; the views may differ in size."""
    return jax.vmap(_errors_of_set)(tuple(pred["pts3d"] for pred in preds), targets)


def normalised_errors(preds: Sequence[Pointmap], truth: Truth) -> tuple[Float[Array, " B"], ...]:
    """Each set's normalised point error of every view: the regression part of DUSt3R's loss (Wang et al., CVPR 2024, section 3.2).

    All views' points are divided by their mean distance to the origin over all views' valid pixels, as those of `truth` are; the error
    is the mean distance between the two over a view's valid pixels. NaN for a view without one; infinity for all views if a point in a
    valid pixel is not finite. Pure, for use under `jit`.
    """

    def of_set(points: tuple[Float[Array, "_H _W 3"], ...], truth: Truth) -> tuple[Float[Array, ""], ...]:
        points, truth = jax.tree.map(lambda leaf: leaf[None], (points, truth))
        # Only the regression is read here, which does not depend on the confidence.
        planes = [planes_of(Pointmap(pts3d=view, conf=jnp.ones(view.shape[:-1], jnp.float32))) for view in points]
        sums = confidence_sums(planes, truth)
        finite = [jnp.isfinite(plane) | ~mask for view, mask in zip(planes, truth.valid, strict=True) for plane in view.points]
        usable = jnp.all(jnp.stack([jnp.all(known) for known in finite]))
        counts = [jnp.sum(mask) for mask in truth.valid]
        errors = (jnp.where(count > 0, total / count, jnp.nan) for total, count in zip(sums.regressions, counts, strict=True))
        return tuple(jnp.where(usable, error, jnp.inf) for error in errors)

    return jax.vmap(of_set)(tuple(pred["pts3d"] for pred in preds), truth)


def mean_distance(targets: Targets) -> Float[Array, " B"]:
    """Each set's mean distance of true points to view 1's camera, over all views' valid pixels, in the ground truth's unit."""
    return jax.vmap(_mean_norm)(in_camera1(targets), tuple(target.valid for target in targets))


def _errors_of_set(points: tuple[Float[Array, "_H _W 3"], ...], targets: Targets) -> tuple[ViewErrors, ...]:
    valid = tuple(target.valid for target in targets)
    batch_points, batch = jax.tree.map(lambda leaf: leaf[None], (points, targets))
    metric = invariant_error(tuple(Pointmap(pts3d=view) for view in batch_points), batch)
    truth = tuple(view[0] for view in in_camera1(batch))
    preds = tuple(jnp.where(mask[..., None], view, 0.0) for view, mask in zip(points, valid, strict=True))
    distance = _mean_norm(preds, valid)
    scale = _mean_norm(truth, valid) / jnp.maximum(distance, _LEAST)

    def view_errors(
        invariant: Float[Array, ""], pred: Float[Array, "H W 3"], true: Float[Array, "H W 3"], valid: Bool[Array, "H W"]
    ) -> ViewErrors:
        relative = jnp.linalg.norm(scale * pred - true, axis=-1) / jnp.maximum(jnp.linalg.norm(true, axis=-1), _LEAST)
        count = jnp.sum(valid)
        mean = jnp.sum(jnp.where(valid, relative, 0.0)) / jnp.maximum(count, 1)
        median = jnp.nanmedian(jnp.where(valid, relative, jnp.nan))
        # Set explicitly: arithmetic would turn NaN into whatever a comparison with it gives.
        failure = jnp.where(count > 0, jnp.inf, jnp.nan)
        usable = (count > 0) & jnp.isfinite(distance)
        return ViewErrors(*(jnp.where(usable, error, failure) for error in (invariant, mean, median)))

    return tuple(map(view_errors, metric.views, preds, truth, valid))


def _mean_norm(points: tuple[Float[Array, "_H _W 3"], ...], valid: tuple[Bool[Array, "_H _W"], ...]) -> Float[Array, ""]:
    """Mean distance to the origin of one set's valid points; invalid ones are 0 and add nothing."""
    total = sum(jnp.sum(jnp.linalg.norm(view, axis=-1)) for view in points)
    return jnp.asarray(total) / jnp.maximum(sum(jnp.sum(mask) for mask in valid), 1)


def point_errors(views: tuple[ViewGeometry, ...], reference: tuple[ViewTruth, ...]) -> tuple[float, ...]:
    """Mean distance of each view's points to the reference's, over the pixels where the reference is known.

    As `normalised_errors`: the error has no unit and does not depend on scale. A view without a known pixel has the error NaN; all
    views have the error infinity if a point in a known pixel is not finite.
    """
    # The points are in view 1's frame already, so its camera stands at the origin.
    camera = jnp.eye(4, dtype=jnp.float32)[None]
    targets = tuple(Target(jnp.asarray(true.points)[None], camera, jnp.asarray(true.valid)[None]) for true in reference)
    return tuple(float(error[0]) for error in _errors(tuple(jnp.asarray(view.points)[None] for view in views), targets))


@jax.jit
def _errors(points: Points, targets: tuple[Target, ...]) -> tuple[Float[Array, " B"], ...]:
    return normalised_errors(tuple(Pointmap(pts3d=view) for view in points), normalised_truth(targets))


def mean_point_distance(views: tuple[ViewGeometry, ...]) -> float:
    """Mean distance of all views' finite points to view 1's camera: the unit of a set of pointmaps. NaN without a finite point."""
    points = np.concatenate([view.points.reshape(-1, 3) for view in views]).astype(np.float64)
    finite = points[np.isfinite(points).all(axis=-1)]
    return max(float(np.linalg.norm(finite, axis=-1).mean()), _LEAST) if len(finite) else np.nan


def mean_displacements(views: tuple[ViewGeometry, ...], before: tuple[ViewGeometry, ...]) -> tuple[float, ...]:
    """How far each view's points have moved: their mean distance to the same pixels' points before, over `mean_point_distance(before)`.

    Neither set is rescaled: points that all move away from the camera have moved. Only pixels whose earlier points are finite count:
    a view without such a pixel gets NaN, and a view in which one of them is no longer finite gets infinity.
    """
    unit = mean_point_distance(before)

    def moved(view: ViewGeometry, earlier: ViewGeometry) -> float:
        known = np.isfinite(earlier.points).all(axis=-1)
        points, start = (geometry.points[known].astype(np.float64) for geometry in (view, earlier))
        if not len(points) or not np.isfinite(points).all():
            return np.inf if len(points) else np.nan
        return float(np.linalg.norm(points - start, axis=-1).mean()) / unit

    return tuple(map(moved, views, before))
