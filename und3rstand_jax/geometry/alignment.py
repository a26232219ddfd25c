"""Ways to align predicted points with the true ones before measuring their distance.

A prediction without a unit needs at least a scale. The error does not see what an alignment is allowed to change.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from und3rstand_jax.geometry.loss import Truth
from und3rstand_jax.geometry.metrics import normalised_errors
from und3rstand_jax.model.heads import Pointmap, length, split_axis

Alignment: TypeAlias = Literal["none", "scale", "median", "similarity"]

ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)

ALIGNMENT_MEANING: dict[Alignment, str] = {
    "none": "the prediction as it is, taken to be in the unit of the true points",
    "scale": "all views' points divided by their joint mean distance to camera 1, as the true ones are (DUSt3R's loss)",
    "median": "shifted along z by the median of all views, then scaled by the median distance to the median point (DUSt3R's test metric)",
    "similarity": "moved, rotated and scaled by the one transformation of all views with the least squared distance (Umeyama 1991)",
}

_LEAST = 1e-8


def aligned_errors(
    preds: Sequence[Pointmap], truth: Truth, unit: Float[Array, " B"], alignment: Alignment = "scale"
) -> tuple[Float[Array, " B"], ...]:
    """Mean distance of each set's points to the true ones, over a view's valid pixels, in units of the set's mean distance to camera 1.

    One transformation is found for all views of a set, from their valid pixels. NaN for a view without one; infinity for all views if
    a point in a valid pixel is not finite. Pure, for use under `jit`.

    Args:
        preds: every view's points in view 1's frame.
        truth: from `und3rstand_jax.geometry.loss.normalised_truth`.
        unit: each set's mean distance of true points to camera 1, by which `truth` was divided.
        alignment: see `ALIGNMENT_MEANING`.
    """
    if alignment == "scale":
        return normalised_errors(preds, truth)

    def of_set(points: tuple[Float[Array, "_H _W 3"], ...], truth: Truth, unit: Float[Array, ""]) -> tuple[Float[Array, ""], ...]:
        valid = jnp.concatenate([mask.reshape(-1) for mask in truth.valid])
        true = jnp.concatenate([jnp.stack(view, axis=-1).reshape(-1, 3) for view in truth.points])
        given = jnp.concatenate([view.reshape(-1, 3) for view in points])
        usable = jnp.all(jnp.isfinite(given) | ~valid[:, None])
        given = jnp.where(valid[:, None] & jnp.isfinite(given), given, 0.0)
        laid = given / jnp.maximum(unit, _LEAST) if alignment == "none" else _laid_over(given, true, valid, alignment)
        distance = _norm(laid - true)
        bounds = itertools.accumulate((mask.size for mask in truth.valid), initial=0)
        errors = (_mean(distance[low:high], valid[low:high]) for low, high in itertools.pairwise(bounds))
        return tuple(jnp.where(usable, error, jnp.inf) for error in errors)

    return jax.vmap(of_set)(tuple(pred["pts3d"] for pred in preds), truth, unit)


def shape_errors(preds: Sequence[Pointmap], truth: Truth, unit: Float[Array, " B"]) -> tuple[Float[Array, " B"], ...]:
    """As `aligned_errors`, but each view is aligned alone, by its own similarity: the error of its shape, wherever the view is placed.

    In one alignment of all views a misplaced view changes the scale, and with it the other views' errors; here it does not.
    """

    def alone(view: int) -> Truth:
        return truth._replace(valid=tuple(mask if own == view else jnp.zeros_like(mask) for own, mask in enumerate(truth.valid)))

    return tuple(aligned_errors(preds, alone(view), unit, "similarity")[view] for view in range(len(preds)))


def _laid_over(
    given: Float[Array, "N 3"], true: Float[Array, "N 3"], valid: Bool[Array, " N"], alignment: Alignment
) -> Float[Array, "N 3"]:
    if alignment == "median":
        given, true_shift = given - _median_z(given, valid), _median_z(true, valid)
        spread, true_spread = _spread(given, valid), _spread(true - true_shift, valid)
        return given * true_spread / jnp.maximum(spread, _LEAST) + true_shift
    weights = valid.astype(jnp.float32)[:, None] / jnp.maximum(valid.sum(), 1)
    centre, true_centre = (weights * given).sum(axis=0), (weights * true).sum(axis=0)
    from_centre, true_from_centre = (given - centre) * valid[:, None], (true - true_centre) * valid[:, None]
    covariance = jnp.matmul((weights * true_from_centre).T, from_centre, precision=lax.Precision.HIGHEST)
    u, sizes, vt = jnp.linalg.svd(covariance)
    # A reflection is not a rotation: the axis of least extent is flipped instead.
    signs = jnp.ones(3).at[2].set(jnp.sign(jnp.linalg.det(u) * jnp.linalg.det(vt)))
    rotation = jnp.matmul(u * signs, vt, precision=lax.Precision.HIGHEST)
    scale = (sizes * signs).sum() / jnp.maximum((weights * from_centre**2).sum(), _LEAST)
    return scale * jnp.matmul(from_centre, rotation.T, precision=lax.Precision.HIGHEST) + true_centre


def _median_z(points: Float[Array, "N 3"], valid: Bool[Array, " N"]) -> Float[Array, "3"]:
    return jnp.array([0.0, 0.0, 1.0]) * _median(points[:, 2], valid)


def _spread(points: Float[Array, "N 3"], valid: Bool[Array, " N"]) -> Float[Array, ""]:
    middle = jnp.stack([_median(axis, valid) for axis in split_axis(points, 1)])
    return _median(_norm(points - middle), valid)


def _median(values: Float[Array, " N"], valid: Bool[Array, " N"]) -> Float[Array, ""]:
    """The lower of two middle values, as in torch; 0 without any."""
    ordered = jnp.sort(jnp.where(valid, values, jnp.inf))
    return jnp.where(valid.any(), ordered[jnp.maximum(valid.sum() - 1, 0) // 2], 0.0)


def _mean(values: Float[Array, " N"], valid: Bool[Array, " N"]) -> Float[Array, ""]:
    """Over the valid values; NaN without any."""
    count = valid.sum()
    return jnp.where(count > 0, jnp.where(valid, values, 0.0).sum() / jnp.maximum(count, 1), jnp.nan)


def _norm(vectors: Float[Array, "N 3"]) -> Float[Array, " N"]:
    return length(*split_axis(vectors, 1))
