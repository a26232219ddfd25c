"""DUSt3R's training loss and its shift- and scale-invariant test metric (Wang et al., CVPR 2024, section 3.3).

Both compare the pointmaps of a set of views with ground truth, over valid pixels only; the values of invalid pixels, NaN included, have no
influence on value or gradient. DUSt3R's sets are pairs; for more views, everything that it computes over both views, such as the scale, is
computed over all. All functions are pure and run under `jit`, `vmap` and `grad`; the views may differ in size.

The training loss is computed on planes, one array per coordinate, with pixels in any order: it is a sum over them.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from und3rstand_jax.model.heads import Plane, Planes, Pointmap, length, planes_of, split_axis

CONFIDENCE_WEIGHT = 0.2  # α of the confidence term
_LEAST_SCALE = 1e-8
_SCALE_RANGE = (1e-3, 1e3)

Points = tuple[Float[Array, "B _H _W 3"], ...]
"""The points of every view."""

Valid = tuple[Bool[Array, "B _H _W"], ...]
"""Which pixels of every view have a true point."""


class Target(NamedTuple):
    """Ground truth of one view.

    `pts3d` (B, H, W, 3) in world coordinates and units, `cam2world` (B, 4, 4), `valid` (B, H, W). Invalid pixels may have any values.
    """

    pts3d: Float[Array, "B H W 3"]
    cam2world: Float[Array, "B 4 4"]
    valid: Bool[Array, "B H W"]


Targets = tuple[Target, ...]
"""Ground truth of every view, in one world and one unit."""


class SetLoss(NamedTuple):
    """A loss over a batch of sets: its total, which is the sum over views, and for each view the means over the batch's valid pixels."""

    total: Float[Array, ""]
    views: tuple[Float[Array, ""], ...]
    regressions: tuple[Float[Array, ""], ...]

    def named(self) -> dict[str, Any]:
        """Its parts as logs call them: `total`, `view1`, `view2`, …, `regression1`, …"""
        by_view = {f"view{view}": value for view, value in enumerate(self.views, start=1)}
        return {"total": self.total, **by_view, **{f"regression{view}": value for view, value in enumerate(self.regressions, start=1)}}


Coordinates = tuple[Plane, Plane, Plane]
"""x, y and z of one view's pixels."""

Mask = Bool[Array, "B ..."]
"""Which of one view's pixels have a true point."""

Counts = tuple[Float[Array, ""], ...]
"""For each view, the number of its valid pixels in a batch, over which its loss is averaged."""


class Truth(NamedTuple):
    """What predictions are compared with: all views' points in view 1's frame, jointly normalised, 0 where invalid.

    Every leaf is an array of one view's pixels, (B, H, W) from `normalised_truth`. A function that reorders or reshapes pixels can
    therefore be mapped over the tree.
    """

    points: tuple[Coordinates, ...]
    valid: tuple[Mask, ...]


class SetSums(NamedTuple):
    """Each view's loss and distance, summed over valid pixels: the sums of micro-batches add up to the batch's."""

    views: tuple[Float[Array, ""], ...]
    regressions: tuple[Float[Array, ""], ...]

    @classmethod
    def zeros(cls, views: int, shape: tuple[int, ...] = ()) -> "SetSums":
        """Zero sums; with a shape, many at once."""
        return cls(*((jnp.zeros(shape, jnp.float32),) * views for _ in cls._fields))


def confidence_loss(preds: Sequence[Pointmap], targets: Targets) -> SetLoss:
    """Confidence-weighted regression with joint normalisation.

    Predictions (all in view 1's frame) and ground truth are each divided by the mean distance to the origin over the valid pixels of
    all views. A view's loss is the mean of conf·ℓ − 0.2·log(conf), ℓ the distance of a predicted point to the true one.
    """
    return mean_loss(confidence_sums(tuple(map(planes_of, preds)), normalised_truth(targets)), valid_counts(targets))


def normalised_truth(targets: Targets) -> Truth:
    """The ground truth's side of `confidence_loss`, which is the same for every prediction of a batch."""
    valid = tuple(target.valid for target in targets)
    return Truth(_normalised(tuple(_coordinates(points) for points in in_camera1(targets)), valid), valid)


def true_scale(targets: Targets) -> Float[Array, " B"]:
    """What the ground truth of each set is divided by: the mean distance of its valid points to view 1's camera, in its unit."""
    return _scale(tuple(_coordinates(points) for points in in_camera1(targets)), tuple(target.valid for target in targets))


def predicted_scale(preds: Sequence[Planes], truth: Truth) -> Float[Array, " B"]:
    """What the predictions of each set are divided by: the mean distance of the points of valid pixels to the origin, in their unit."""
    return _scale(tuple(_masked_planes(pred, mask) for pred, mask in zip(preds, truth.valid, strict=True)), truth.valid)


def valid_counts(targets: Targets) -> Counts:
    """How many valid pixels each view has in the batch: the counts of micro-batches add up to the batch's."""
    return tuple(jnp.sum(target.valid).astype(jnp.float32) for target in targets)


def confidence_sums(preds: Sequence[Planes], truth: Truth) -> SetSums:
    """The sums over pixels from which `mean_loss` computes `confidence_loss`.

    The pixels of predictions and truth are in the same order and shape. Predictions must have a confidence.
    """
    points = _normalised(tuple(_masked_planes(pred, mask) for pred, mask in zip(preds, truth.valid, strict=True)), truth.valid)
    losses, regressions = [], []
    for pred, ours, true, mask in zip(preds, points, truth.points, truth.valid, strict=True):
        distance = length(*(a - b for a, b in zip(ours, true, strict=True)))
        assert pred.conf is not None, "the loss is weighted by the confidence"
        confidence = jnp.where(mask, pred.conf, 1.0)
        losses.append(_sum(confidence * distance - CONFIDENCE_WEIGHT * jnp.log(confidence), mask))
        regressions.append(_sum(distance, mask))
    return SetSums(tuple(losses), tuple(regressions))


def mean_loss(sums: SetSums, counts: Counts) -> SetLoss:
    """The loss of a batch from its sums and counts; a view without valid pixels adds 0."""
    least = [jnp.maximum(count, 1.0) for count in counts]
    views, regressions = (tuple(total / count for total, count in zip(totals, least, strict=True)) for totals in sums)
    return SetLoss(functools.reduce(jnp.add, views), views, regressions)


def invariant_error(preds: Sequence[Pointmap], targets: Targets) -> SetLoss:
    """The test metric: mean distance after removing shift along z and scale, in the ground truth's unit.

    z is taken relative to its median over all views' valid points, and the prediction is scaled so that the median distance of its
    points to their component-wise median is the ground truth's.
    """
    valid = tuple(target.valid for target in targets)
    truth = _shifted(in_camera1(targets), valid)
    points = _shifted(_masked(tuple(pred["pts3d"] for pred in preds), valid), valid)
    factor = _spread(truth, valid) / jnp.clip(_spread(points, valid), *_SCALE_RANGE)
    factor = factor[:, None, None, None]
    errors = tuple(
        _sum(_norm(ours * factor - true), mask) / jnp.maximum(jnp.sum(mask), 1)
        for ours, true, mask in zip(points, truth, valid, strict=True)
    )
    return SetLoss(functools.reduce(jnp.add, errors), errors, errors)


def in_camera1(targets: Targets) -> Points:
    """All views' true points in the frame of view 1's camera; 0 where invalid."""
    rotation, origin = targets[0].cam2world[:, :3, :3], targets[0].cam2world[:, :3, 3]

    def moved(target: Target) -> Float[Array, "B H W 3"]:
        points = jnp.where(target.valid[..., None], target.pts3d, 0.0) - origin[:, None, None]
        # The inverse of a rotation is its transpose: p' = Rᵀ(p − t).
        in_camera = jnp.einsum("bji,bhwj->bhwi", rotation, points, precision=lax.Precision.HIGHEST)
        return jnp.where(target.valid[..., None], in_camera, 0.0)

    return tuple(map(moved, targets))


def _masked(points: Points, valid: Valid) -> Points:
    return tuple(jnp.where(mask[..., None], p, 0.0) for p, mask in zip(points, valid, strict=True))


def _coordinates(points: Float[Array, "B H W 3"]) -> Coordinates:
    x, y, z = split_axis(points, 3)
    return x, y, z


def _masked_planes(pred: Planes, valid: Mask) -> Coordinates:
    x, y, z = (jnp.where(valid, plane, 0.0) for plane in pred.points)
    return x, y, z


def _normalised(points: tuple[Coordinates, ...], valid: tuple[Mask, ...]) -> tuple[Coordinates, ...]:
    """Points divided by their mean distance to the origin over all views of each set; invalid points are 0 and add nothing."""
    scale = _scale(points, valid)
    return tuple(jax.tree.map(lambda plane: plane / scale.reshape(-1, *[1] * (plane.ndim - 1)), view) for view in points)


def _scale(points: tuple[Coordinates, ...], valid: tuple[Mask, ...]) -> Float[Array, " B"]:
    total = sum(_sum_of_set(length(*view)) for view in points)
    count = sum(_sum_of_set(mask.astype(jnp.float32)) for mask in valid)
    return jnp.maximum(total / (count + 1e-8), _LEAST_SCALE)


def _sum_of_set(values: Plane) -> Float[Array, " B"]:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _shifted(points: Points, valid: Valid) -> Points:
    """Points with the median z of all views at 0."""
    median = _median(_joined(tuple(p[..., 2] for p in points)), _joined(valid))
    shift = jnp.stack([jnp.zeros_like(median), jnp.zeros_like(median), median], axis=-1)[:, None, None]
    return tuple(view - shift for view in points)


def _spread(points: Points, valid: Valid) -> Float[Array, " B"]:
    """Median distance of a set's valid points to their component-wise median."""
    mask = _joined(valid)
    coordinates = [_joined(tuple(p[..., axis] for p in points)) for axis in range(3)]
    centred = jnp.stack([values - _median(values, mask)[:, None] for values in coordinates], axis=-1)
    return _median(_norm(centred), mask)


def _joined(views: tuple[Shaped[Array, "B _H _W"], ...]) -> Shaped[Array, "B _N"]:
    """The pixels of all views of each set in one row."""
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
