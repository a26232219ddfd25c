"""DUSt3R's training loss and its shift- and scale-invariant test metric (Wang et al., CVPR 2024, section 3.3).

Both compare the two pointmaps of a pair with ground truth, over valid pixels only; what an invalid pixel holds, NaN included, has no
influence on value or gradient. All functions are pure and run under `jit`, `vmap` and `grad`; the two views may differ in size.

The training loss is computed on planes, one array a coordinate, of pixels in any order: it is a sum over them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from und3rstand_jax.model.heads import Plane, Planes, Pointmap, length, planes_of, split_axis
from und3rstand_jax.model.output import pair

CONFIDENCE_WEIGHT = 0.2  # α of the confidence term
_LEAST_SCALE = 1e-8
_SCALE_RANGE = (1e-3, 1e3)

Points = tuple[Float[Array, "B H1 W1 3"], Float[Array, "B H2 W2 3"]]
"""The points of both views."""

Valid = tuple[Bool[Array, "B H1 W1"], Bool[Array, "B H2 W2"]]
"""Which pixels of both views have a true point."""


class Target(NamedTuple):
    """Ground truth of one view.

    `pts3d` (B, H, W, 3) in world coordinates and units, `cam2world` (B, 4, 4), `valid` (B, H, W). Invalid pixels may hold anything.
    """

    pts3d: Float[Array, "B H W 3"]
    cam2world: Float[Array, "B 4 4"]
    valid: Bool[Array, "B H W"]


class PairLoss(NamedTuple):
    """A loss over a batch of pairs: its total, and each view's means over the batch's valid pixels."""

    total: Float[Array, ""]
    view1: Float[Array, ""]
    view2: Float[Array, ""]
    regression1: Float[Array, ""]
    regression2: Float[Array, ""]


Coordinates = tuple[Plane, Plane, Plane]
"""x, y and z of one view's pixels."""

Mask = Bool[Array, "B ..."]
"""Which of one view's pixels have a true point."""


class Truth(NamedTuple):
    """What predictions are compared with: both views' points in view 1's frame, jointly normalised, 0 where invalid.

    Every leaf is an array of one view's pixels, (B, H, W) from `normalised_truth`: mapped over the tree, a change of their order or shape
    reorders them all.
    """

    points: tuple[Coordinates, Coordinates]
    valid: tuple[Mask, Mask]


class PairSums(NamedTuple):
    """Each view's loss and distance, summed over valid pixels: the sums of micro-batches add up to the batch's."""

    view1: Float[Array, ""]
    view2: Float[Array, ""]
    regression1: Float[Array, ""]
    regression2: Float[Array, ""]


def confidence_loss(pred1: Pointmap, pred2: Pointmap, target1: Target, target2: Target) -> PairLoss:
    """Confidence-weighted regression with joint normalisation.

    Predictions (both in view 1's frame) and ground truth are each divided by the mean distance to the origin over the valid pixels of
    both views. A view's loss is the mean of conf·ℓ − 0.2·log(conf), ℓ the distance of a predicted point to the true one.
    """
    sums = confidence_sums(planes_of(pred1), planes_of(pred2), normalised_truth(target1, target2))
    return mean_loss(sums, valid_counts(target1, target2))


def normalised_truth(target1: Target, target2: Target) -> Truth:
    """The ground truth's side of `confidence_loss`, which is the same for every prediction of a batch."""
    valid = (target1.valid, target2.valid)
    return Truth(_normalised(pair(_coordinates(points) for points in in_camera1(target1, target2)), valid), valid)


def valid_counts(target1: Target, target2: Target) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How many valid pixels each view has in the batch: the counts of micro-batches add up to the batch's."""
    return jnp.sum(target1.valid).astype(jnp.float32), jnp.sum(target2.valid).astype(jnp.float32)


def confidence_sums(pred1: Planes, pred2: Planes, truth: Truth) -> PairSums:
    """The sums over pixels from which `mean_loss` computes `confidence_loss`.

    The pixels of predictions and truth are in the same order and shape. Predictions must have a confidence.
    """
    assert pred1.conf is not None and pred2.conf is not None, "the loss is weighted by the confidence"
    points = _normalised(pair(_masked_planes(pred, mask) for pred, mask in zip((pred1, pred2), truth.valid, strict=True)), truth.valid)
    losses, regressions = [], []
    for conf, ours, true, mask in zip((pred1.conf, pred2.conf), points, truth.points, truth.valid, strict=True):
        distance = length(*(a - b for a, b in zip(ours, true, strict=True)))
        confidence = jnp.where(mask, conf, 1.0)
        losses.append(_sum(confidence * distance - CONFIDENCE_WEIGHT * jnp.log(confidence), mask))
        regressions.append(_sum(distance, mask))
    return PairSums(*losses, *regressions)


def mean_loss(sums: PairSums, counts: tuple[Float[Array, ""], Float[Array, ""]]) -> PairLoss:
    """The loss of a batch from its sums and counts; a view without valid pixels adds 0."""
    views = [jnp.maximum(count, 1.0) for count in (*counts, *counts)]
    means = [total / count for total, count in zip(sums, views, strict=True)]
    return PairLoss(means[0] + means[1], *means)


def invariant_error(pred1: Pointmap, pred2: Pointmap, target1: Target, target2: Target) -> PairLoss:
    """The test metric: mean distance after removing shift along z and scale, in the ground truth's unit.

    z is taken relative to its median over both views' valid points, and the prediction is scaled so that the median distance of its
    points to their component-wise median is the ground truth's.
    """
    valid = (target1.valid, target2.valid)
    truth = _shifted(in_camera1(target1, target2), valid)
    points = _shifted(_masked((pred1["pts3d"], pred2["pts3d"]), valid), valid)
    factor = _spread(truth, valid) / jnp.clip(_spread(points, valid), *_SCALE_RANGE)
    factor = factor[:, None, None, None]
    errors = [
        _sum(_norm(ours * factor - true), mask) / jnp.maximum(jnp.sum(mask), 1)
        for ours, true, mask in zip(points, truth, valid, strict=True)
    ]
    return PairLoss(errors[0] + errors[1], *errors, *errors)


def in_camera1(target1: Target, target2: Target) -> Points:
    """Both views' true points in the frame of view 1's camera; 0 where invalid."""
    rotation, origin = target1.cam2world[:, :3, :3], target1.cam2world[:, :3, 3]

    def moved(target: Target) -> Float[Array, "B H W 3"]:
        points = jnp.where(target.valid[..., None], target.pts3d, 0.0) - origin[:, None, None]
        # The inverse of a rotation is its transpose: p' = Rᵀ(p − t).
        in_camera = jnp.einsum("bji,bhwj->bhwi", rotation, points, precision=lax.Precision.HIGHEST)
        return jnp.where(target.valid[..., None], in_camera, 0.0)

    return moved(target1), moved(target2)


def _masked(points: Points, valid: Valid) -> Points:
    return pair(jnp.where(mask[..., None], p, 0.0) for p, mask in zip(points, valid, strict=True))


def _coordinates(points: Float[Array, "B H W 3"]) -> Coordinates:
    x, y, z = split_axis(points, 3)
    return x, y, z


def _masked_planes(pred: Planes, valid: Mask) -> Coordinates:
    x, y, z = (jnp.where(valid, plane, 0.0) for plane in pred.points)
    return x, y, z


def _normalised(points: tuple[Coordinates, Coordinates], valid: tuple[Array, Array]) -> tuple[Coordinates, Coordinates]:
    """Points over their mean distance to the origin, over both views of each pair; invalid ones are 0 and add nothing."""
    total = sum(_sum_of_pair(length(*view)) for view in points)
    count = sum(_sum_of_pair(mask.astype(jnp.float32)) for mask in valid)
    scale = jnp.maximum(total / (count + 1e-8), _LEAST_SCALE)
    return pair(jax.tree.map(lambda plane: plane / scale.reshape(-1, *[1] * (plane.ndim - 1)), view) for view in points)


def _sum_of_pair(values: Plane) -> Float[Array, " B"]:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _shifted(points: Points, valid: Valid) -> Points:
    """Points with the median z of both views at 0."""
    median = _median(_joined(pair(p[..., 2] for p in points)), _joined(valid))
    shift = jnp.stack([jnp.zeros_like(median), jnp.zeros_like(median), median], axis=-1)[:, None, None]
    return points[0] - shift, points[1] - shift


def _spread(points: Points, valid: Valid) -> Float[Array, " B"]:
    """Median distance of a pair's valid points to their component-wise median."""
    mask = _joined(valid)
    coordinates = [_joined(pair(p[..., axis] for p in points)) for axis in range(3)]
    centred = jnp.stack([values - _median(values, mask)[:, None] for values in coordinates], axis=-1)
    return _median(_norm(centred), mask)


def _joined(views: tuple[Shaped[Array, "B H1 W1"], Shaped[Array, "B H2 W2"]]) -> Shaped[Array, "B H1*W1+H2*W2"]:
    """The pixels of both views of each pair in one row."""
    return jnp.concatenate([view.reshape(len(view), -1) for view in views], axis=1)


def _median(values: Float[Array, "B N"], valid: Bool[Array, "B N"]) -> Float[Array, " B"]:
    """Median of each row's valid values, the lower of two middle ones as in torch; 0 where there are none.

    Found bit by bit rather than by sorting, which takes 19 times as long on a CPU (two views of 512×512) and is slow on TPUs too.
    """
    bits = lax.bitcast_convert_type(values, jnp.int32)
    # Floats sort as integers once the negative ones are reversed; flipping the sign bit then makes them unsigned.
    order = lax.bitcast_convert_type(bits ^ ((bits >> 31) & 0x7FFFFFFF), jnp.uint32) ^ jnp.uint32(1 << 31)
    count = jnp.sum(valid, axis=1)
    middle = jnp.maximum(count - 1, 0) // 2

    def settle_bit(i: ArrayLike, found: Array) -> Array:
        larger = found | (jnp.uint32(1 << 31) >> jnp.asarray(i, jnp.uint32))
        below = jnp.sum(valid & (order < larger[:, None]), axis=1)
        return jnp.where(below <= middle, larger, found)

    found = lax.fori_loop(0, 32, settle_bit, jnp.zeros(len(values), jnp.uint32))
    signed = lax.bitcast_convert_type(found ^ jnp.uint32(1 << 31), jnp.int32)
    median = lax.bitcast_convert_type(signed ^ ((signed >> 31) & 0x7FFFFFFF), jnp.float32)
    return jnp.where(count > 0, median, 0.0)


def _sum(values: Plane, valid: Mask) -> Float[Array, ""]:
    return jnp.sum(jnp.where(valid, values, 0.0))


def _norm(vectors: Float[Array, "*B 3"]) -> Float[Array, "*B"]:
    return length(*split_axis(vectors, vectors.ndim - 1))
