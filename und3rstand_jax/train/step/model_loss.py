"""The loss of a whole model: that of its pointmaps, and of its cameras if it has a head for them.

The cameras' loss is that of pose probes (`pose_step`), after every iteration that refines them. Later iterations weigh more, as in RAFT
(Teed and Deng, ECCV 2020, section 3.3). Points and cameras share one unit, which is the model's own: translations are divided by the same
scale by which the points' loss divides the predicted points.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from und3rstand_jax.data.example import Example
from und3rstand_jax.geometry.loss import Counts, SetSums, confidence_sums, mean_loss, normalised_truth, predicted_scale
from und3rstand_jax.model.head_choice import CAMERAS, HasHeads, Head, head_of, pointmap_head
from und3rstand_jax.model.heads import planes_of
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.train.step.kept_step import Poses
from und3rstand_jax.train.step.pose_step import PoseLoss, pose_distances, true_poses

DECAY = 0.8
"""Weight of an iteration's distances, relative to those of the next one."""


class ModelLoss(NamedTuple):
    """A loss over a batch: what is minimised; for each view, the means over valid pixels; for the cameras, the means over all of them."""

    total: Float[Array, "..."]
    views: tuple[Float[Array, "..."], ...]
    regressions: tuple[Float[Array, "..."], ...]
    cameras: PoseLoss | None

    def named(self) -> dict[str, Any]:
        """Its parts under their names in logs: `total`, `view1`, …, `regression1`, …, `camera_total`, `camera_translation`, …"""
        views = {f"view{view}": value for view, value in enumerate(self.views, start=1)}
        regressions = {f"regression{view}": value for view, value in enumerate(self.regressions, start=1)}
        cameras = {} if self.cameras is None else {f"camera_{name}": value for name, value in self.cameras.named().items()}
        return {"total": self.total, **views, **regressions, **cameras}


class ModelSums(NamedTuple):
    """Sums over a micro-batch, which add up to the batch's: over valid pixels, and over the cameras for PoseLoss's three parts."""

    points: SetSums
    cameras: tuple[Float[Array, ""], ...] | None

    @classmethod
    def zeros(cls, views: int, cameras: bool) -> "ModelSums":
        """Sums of nothing."""
        return cls(SetSums.zeros(views), (jnp.zeros((), jnp.float32),) * 3 if cameras else None)


def trained_heads(config: HasHeads) -> tuple[Head, ...]:
    """The heads whose outputs the loss uses."""
    return tuple(head for head in config.heads if head.name in pointmap_head(config) or head == head_of(CAMERAS, config))


def loss_sums(output: BackboneOutput, example: Example) -> ModelSums:
    """The sums of a pass in which the `trained_heads` ran."""
    planes, truth = tuple(map(planes_of, output.pointmaps)), normalised_truth(example.targets)
    points = confidence_sums(planes, truth)
    if output.cameras is None:
        return ModelSums(points, None)
    return ModelSums(points, camera_sums(output.cameras.pose_encodings, predicted_scale(planes, truth), true_poses(example)))


def camera_sums(encodings: Float[Array, "K B V 9"], unit: Float[Array, " B"], truth: Poses) -> tuple[Float[Array, ""], ...]:
    """Sums over all cameras of the three distances' weighted means over iterations; a set without a unit of length adds 0.

    Args:
        encodings: encodings after each of K iterations, with translations in the model's unit.
        unit: the size of that unit, by which translations are divided.
        truth: all views' cameras.
    """
    weights = DECAY ** jnp.arange(len(encodings) - 1, -1, -1, dtype=jnp.float32)
    unit = jnp.where(truth.known, unit, 1.0)  # for sets that do not count it may be nearly zero
    scaled = jnp.concatenate([encodings[..., :3] / unit[:, None, None], encodings[..., 3:]], axis=-1)
    parts = (
        jnp.einsum("k,kbv->bv", weights / jnp.sum(weights), part)
        for part in pose_distances(scaled, jnp.broadcast_to(truth.encodings, scaled.shape))
    )
    return tuple(jnp.sum(jnp.where(truth.known[:, None], part, 0.0)) for part in parts)


def mean_model_loss(sums: ModelSums, counts: Counts, sets: Float[Array, ""]) -> ModelLoss:
    """The loss of a batch of `sets` sets, from its sums and its counts of pixels."""
    points = mean_loss(sums.points, counts)
    if sums.cameras is None:
        return ModelLoss(*points, None)
    translation, rotation, field_of_view = (value / (sets * len(counts)) for value in sums.cameras)
    cameras = PoseLoss(translation + rotation + field_of_view, translation, rotation, field_of_view)
    return ModelLoss(points.total + cameras.total, points.views, points.regressions, cameras)
