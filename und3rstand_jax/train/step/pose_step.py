"""What pose probes keep of a pass, their loss, and their validation error.

The loss is the sum of three squared distances to the true encoding: of the translations, of the unit quaternions up to their sign, and of
the fields of view.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from und3rstand_jax.data.example import Example
from und3rstand_jax.geometry.loss import true_scale
from und3rstand_jax.geometry.pose import LEAST_BASELINE
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.pose_encoding import encoding_of
from und3rstand_jax.model.stack import Params
from und3rstand_jax.probes.pose import camera_tokens, init_pose, read_pose
from und3rstand_jax.train.step.kept_step import Kept, Poses, Reading, RowCounts, Truth

MEASURES = ("rotation", "translation", "field_of_view")
"""Errors of a camera, each an angle in degrees: of the rotation between it and the true one, between the directions of their translations,
and the difference of their fields of view (the mean of the vertical and the horizontal one).
"""


class PoseLoss(NamedTuple):
    """Means over the batch's cameras: what is minimised, and its three parts."""

    total: Float[Array, "..."]
    translation: Float[Array, "..."]
    rotation: Float[Array, "..."]
    field_of_view: Float[Array, "..."]

    def named(self) -> dict[str, Any]:
        """Its parts under their names in logs."""
        return self._asdict()


@dataclasses.dataclass(frozen=True)
class PoseReading(Reading):
    """Camera tokens of a `backbone`, and the true cameras."""

    kind = Poses

    backbone: ModelConfig

    def keep(self, output: BackboneOutput, example: Example, keys: Key[Array, " B"]) -> Kept:
        """See `Reading`."""
        poses = true_poses(example)
        return Kept(camera_tokens(output, self.config, self.backbone), poses._replace(encodings=poses.encodings[:, 1:]))

    def init(self, seed: int, truth: Truth) -> dict[str, Params]:
        """Probes that give the mean of the true encodings, whatever the token."""
        poses = cast(Poses, truth)
        known = jnp.where(poses.known[:, None, None], poses.encodings, 0.0)
        return init_pose(self.config, jnp.sum(known, axis=(0, 1)) / jnp.maximum(self.counts(truth)[0], 1.0))

    def counts(self, truth: Truth) -> RowCounts:
        """Number of cameras whose set has a unit of length."""
        poses = cast(Poses, truth)
        return (jnp.sum(poses.known).astype(jnp.float32) * poses.encodings.shape[1],)

    def loss(self, params: Params, tokens: Float[Array, "B V C"], truth: Truth, counts: RowCounts) -> tuple[Float[Array, ""], PoseLoss]:
        """See `Reading`."""
        poses = cast(Poses, truth)
        parts = pose_distances(read_pose(params, tokens), poses.encodings)
        sums = (jnp.sum(jnp.where(poses.known[:, None], part, 0.0)) for part in parts)
        translation, rotation, field_of_view = (value / jnp.maximum(counts[0], 1.0) for value in sums)
        total = translation + rotation + field_of_view
        return total, PoseLoss(total, translation, rotation, field_of_view)

    def errors(self, params: Params, tokens: Float[Array, "B V C"], truth: Truth) -> Float[Array, "B 3"]:
        """The means of MEASURES over views; for directions, NaN where all cameras are in one place."""
        poses = cast(Poses, truth)
        return jnp.nanmean(pose_angles(read_pose(params, tokens), poses.encodings, poses.known[:, None]), axis=1)


def true_poses(example: Example) -> Poses:
    """All views' cameras, as transforms from view 1's camera frame to theirs, in units of the scene's scale; view 1's is at the origin."""
    targets, scale = example.targets, true_scale(example.targets)
    known = jnp.any(jnp.stack([jnp.any(target.valid, axis=(1, 2)) for target in targets]), axis=0)
    rotation1, origin1 = targets[0].cam2world[:, :3, :3], targets[0].cam2world[:, :3, 3]
    encodings = []
    for target, intrinsics in zip(targets, example.intrinsics, strict=True):
        # The inverse of a rotation is its transpose.
        to_camera = jnp.swapaxes(target.cam2world[:, :3, :3], 1, 2)
        rotation = jnp.matmul(to_camera, rotation1, precision=lax.Precision.HIGHEST)
        moved = jnp.einsum("bij,bj->bi", to_camera, origin1 - target.cam2world[:, :3, 3], precision=lax.Precision.HIGHEST)
        translation = jnp.where(known[:, None], moved / scale[:, None], 0.0)
        height, width = target.valid.shape[1:]
        encodings.append(encoding_of(jnp.concatenate([rotation, translation[..., None]], axis=-1), intrinsics, (height, width)))
    return Poses(jnp.stack(encodings, axis=1), known)


def pose_distances(
    encodings: Float[Array, "*B 9"], truth: Float[Array, "*B 9"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"], Float[Array, "*B"]]:
    """Squared distances of translations, of unit quaternions up to their sign, and of fields of view."""
    difference = encodings - truth
    product = jnp.sum(_unit(encodings[..., 3:7]) * truth[..., 3:7], axis=-1)
    return jnp.sum(difference[..., :3] ** 2, axis=-1), 2 - 2 * jnp.abs(product), jnp.sum(difference[..., 7:] ** 2, axis=-1)


def pose_angles(encodings: Float[Array, "*B 9"], truth: Float[Array, "*B 9"], known: Bool[Array, "*#B"]) -> Float[Array, "*B 3"]:
    """MEASURES of each camera; the direction is NaN where the true translation is shorter than LEAST_BASELINE, or not `known`."""
    apart, together = _chords(encodings[..., 3:7], truth[..., 3:7])
    rotation = 4 * jnp.arctan2(jnp.minimum(apart, together), jnp.maximum(apart, together))
    direction = 2 * jnp.arctan2(*_chords(encodings[..., :3], truth[..., :3]))
    has_baseline = known & (jnp.sum(truth[..., :3] ** 2, axis=-1) >= LEAST_BASELINE**2)
    fields = jnp.mean(jnp.abs(encodings[..., 7:] - truth[..., 7:]), axis=-1)
    return jnp.stack([rotation, jnp.where(has_baseline, direction, jnp.nan), fields], axis=-1) * (180 / np.pi)


def _chords(a: Float[Array, "*B N"], b: Float[Array, "*B N"]) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """Lengths of the difference and of the sum of two vectors scaled to unit length. Twice their ratio's arc tangent is the vectors' angle.
    It is exact for small angles, where the arc cosine of the product loses half the digits.
    """
    one, two = _unit(a), _unit(b)
    return jnp.linalg.norm(one - two, axis=-1), jnp.linalg.norm(one + two, axis=-1)


def _unit(vectors: Float[Array, "*B N"]) -> Float[Array, "*B N"]:
    return vectors * lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-12)
