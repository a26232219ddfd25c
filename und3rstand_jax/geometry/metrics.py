"""Errors of two predicted pointmaps a pair, each pair on its own, so that how pairs are batched changes no figure.

Whatever lies in an invalid pixel, NaN included, changes nothing. A view without a valid pixel has the error NaN, to be left out of
averages. A pair whose prediction is not finite in a valid pixel (or too large to be squared) has the error infinity in both views, which
must not be left out.

How far a layer's points lie from a reference: the regression part of DUSt3R's loss (Wang et al., CVPR 2024, section 3.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.loss import PairLoss, Target, confidence_loss, invariant_error
from und3rstand_jax.model.output import pair
from und3rstand_jax.model.pointmap import Pointmap

_LEAST = 1e-8


class ViewErrors(NamedTuple):
    """Errors of one view, of each pair.

    `invariant` is the test metric (`train.loss.invariant_error`) in the ground truth's unit. `relative_mean` and `relative_median`, over
    the view's valid pixels, are of ‖s·p − g‖ / ‖g‖: predicted point p and true point g in the frame of view 1's camera, s the ratio of
    their mean distances to the origin over both views' valid pixels, as in training.
    """

    invariant: Float[Array, " B"]
    relative_mean: Float[Array, " B"]
    relative_median: Float[Array, " B"]


def pair_errors(pred1: Pointmap, pred2: Pointmap, target1: Target, target2: Target) -> tuple[ViewErrors, ViewErrors]:
    """The errors of both views of each pair. Pure, for use under `jit`; the views may differ in size."""
    return jax.vmap(_errors_of_pair)(pred1["pts3d"], pred2["pts3d"], target1, target2)


def mean_distance(target1: Target, target2: Target) -> Float[Array, " B"]:
    """Each pair's mean distance of true points to view 1's camera, over both views' valid pixels, in the ground truth's unit."""
    return jax.vmap(lambda one, two: _mean_norm(_in_camera1(one, two), (one.valid, two.valid)))(target1, target2)


def _errors_of_pair(
    points1: Float[Array, "H1 W1 3"], points2: Float[Array, "H2 W2 3"], target1: Target, target2: Target
) -> tuple[ViewErrors, ViewErrors]:
    points, targets = (points1, points2), (target1, target2)
    valid = (target1.valid, target2.valid)
    (one, two), as_batch = jax.tree.map(lambda leaf: leaf[None], (points, targets))
    metric = invariant_error({"pts3d": one}, {"pts3d": two}, *as_batch)
    truth = _in_camera1(target1, target2)
    known = tuple(jnp.where(mask[..., None], view, 0.0) for view, mask in zip(points, valid, strict=True))
    distance = _mean_norm(known, valid)
    scale = _mean_norm(truth, valid) / jnp.maximum(distance, _LEAST)
    first, second = (
        _view_errors(error, _relative(scale * pred, true), mask, jnp.isfinite(distance))
        for error, pred, true, mask in zip((metric.view1, metric.view2), known, truth, valid, strict=True)
    )
    return first, second


def _relative(pred: Float[Array, "H W 3"], true: Float[Array, "H W 3"]) -> Float[Array, "H W"]:
    return jnp.linalg.norm(pred - true, axis=-1) / jnp.maximum(jnp.linalg.norm(true, axis=-1), _LEAST)


def _view_errors(
    invariant: Float[Array, ""], relative: Float[Array, "H W"], valid: Bool[Array, "H W"], is_finite: Bool[Array, ""]
) -> ViewErrors:
    count = jnp.sum(valid)
    mean = jnp.sum(jnp.where(valid, relative, 0.0)) / jnp.maximum(count, 1)
    median = jnp.nanmedian(jnp.where(valid, relative, jnp.nan))

    def honest(error: Float[Array, ""]) -> Float[Array, ""]:
        # Said here rather than left to arithmetic, which turns NaN into whatever a comparison with it gives.
        return jnp.where(count > 0, jnp.where(is_finite, error, jnp.inf), jnp.nan)

    return ViewErrors(honest(invariant), honest(mean), honest(median))


def _in_camera1(target1: Target, target2: Target) -> tuple[Float[Array, "H1 W1 3"], Float[Array, "H2 W2 3"]]:
    """Both views' true points of one pair in the frame of view 1's camera; 0 where invalid."""
    rotation, origin = target1.cam2world[:3, :3], target1.cam2world[:3, 3]

    def moved(target: Target) -> Float[Array, "H W 3"]:
        offsets = jnp.where(target.valid[..., None], target.pts3d - origin, 0.0)
        return jnp.matmul(offsets, rotation, precision=lax.Precision.HIGHEST)  # rows times R are columns times R's inverse

    return moved(target1), moved(target2)


def _mean_norm(points: tuple[Array, ...], valid: tuple[Array, ...]) -> Float[Array, ""]:
    """Mean distance to the origin of the valid points of both views; invalid ones are 0 and add nothing."""
    total = sum(jnp.sum(jnp.linalg.norm(view, axis=-1)) for view in points)
    return jnp.asarray(total) / jnp.maximum(sum(jnp.sum(mask) for mask in valid), 1)


def point_errors(views: tuple[ViewGeometry, ViewGeometry], reference: tuple[ViewTruth, ViewTruth]) -> tuple[float, float]:
    """Mean distance of each view's points to the reference's, over the pixels where the reference is known.

    Both pairs of pointmaps are first divided by their mean distance to the origin, over the known pixels of both views: the error has no
    unit, and scale does not count. A view without a known pixel has the error NaN; infinite are those of both views where a point in a
    known pixel is not finite.
    """
    known = [view.points[true.valid] for view, true in zip(views, reference, strict=True)]
    if not all(np.isfinite(points).all() for points in known):
        return np.inf, np.inf
    loss = _loss(pair(jnp.asarray(view.points)[None] for view in views), pair(map(_target, reference)))
    first, second = (
        float(error) if len(points) else np.nan for error, points in zip((loss.regression1, loss.regression2), known, strict=True)
    )
    return first, second


def _target(true: ViewTruth) -> Target:
    # Points are in view 1's frame already, so that its camera stands at the origin.
    return Target(jnp.asarray(true.points)[None], jnp.eye(4)[None], jnp.asarray(true.valid)[None])


@jax.jit
def _loss(points: tuple[Float[Array, "1 H W 3"], Float[Array, "1 H W 3"]], targets: tuple[Target, Target]) -> PairLoss:
    # The confidence has no part in the regression, which alone is read here.
    pred1, pred2 = (Pointmap(pts3d=view, conf=jnp.ones(view.shape[:-1])) for view in points)
    return confidence_loss(pred1, pred2, *targets)
