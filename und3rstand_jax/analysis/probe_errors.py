"""What an evaluation finds: a record a layer, averaged over pairs.

The device's part of an evaluation: one program that runs the backbone once and decodes one layer after the other.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from und3rstand_jax.data.example import Example
from und3rstand_jax.geometry.cameras import sampling
from und3rstand_jax.geometry.metrics import ViewErrors, mean_distance, pair_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.pointmap import Pointmap
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes.probes import Probes, read_group

ACCURATE_DEGREES = 15.0


FAILED_DEGREES = 180.0


@dataclass(frozen=True)
class ViewResult:
    """Errors of one view, means over the pairs in which it has a valid pixel (NaN if there is none); see `ViewErrors`.

    Infinite where the layer's prediction was not finite for a pair.
    """

    invariant: float
    relative_mean: float
    relative_median: float


@dataclass(frozen=True)
class PoseResult:
    """How far view 2's pose, by its pointmap, is off; a pair whose pose was not found counts as 180° off.

    `rotation_degrees` and `translation_degrees` (the translation's direction) are medians over pairs, the latter over those whose cameras
    are apart, NaN if there is none. `accuracy_15` is the share of pairs with both below 15° (rotation alone where the cameras are not
    apart), `failed` the number of pairs whose pose was not found.
    """

    rotation_degrees: float
    translation_degrees: float
    accuracy_15: float
    failed: int


@dataclass(frozen=True)
class LayerResult:
    """One layer, by its layer id, or the model's own head ("head"). `pose` is None where poses were not asked for."""

    layer_id: str
    view1: ViewResult
    view2: ViewResult
    pose: PoseResult | None


@dataclass(frozen=True)
class Evaluation:
    """The probed layers in network order, the model's own head if it has one, and over how many pairs they are averaged.

    `without_valid` counts, of each view, the pairs without a valid pixel, and `without_baseline` those whose cameras stand in one place
    or whose ground truth is all invalid.
    """

    layers: tuple[LayerResult, ...]
    head: LayerResult | None
    pairs: int
    without_valid: tuple[int, int]
    without_baseline: int


def view_result(errors: ViewErrors) -> ViewResult:
    """The mean of one layer's errors over pairs."""
    return ViewResult(*(_mean(np.asarray(values, np.float64)) for values in errors))


def pose_result(rotation: Sequence[float], direction: Sequence[float], failed: Sequence[bool]) -> PoseResult:
    """The summary of one layer's pose errors, in degrees a pair; direction NaN where the cameras are not apart."""
    rotations, directions = np.asarray(rotation), np.asarray(direction)
    has_direction: Bool[np.ndarray, " B"] = ~np.isnan(directions)
    accurate = (rotations < ACCURATE_DEGREES) & ((directions < ACCURATE_DEGREES) | ~has_direction)
    translation = float(np.median(directions[has_direction])) if has_direction.any() else float("nan")
    return PoseResult(float(np.median(rotations)), translation, float(accurate.mean()), int(np.sum(failed)))


def _mean(values: Float[np.ndarray, " B"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


class Sample(NamedTuple):
    """View 2's pointmap at the pixels of `sampled_pixels`, with a leading layer axis; `confidence` is None where a probe yields none."""

    points: Float[Array, "L B N 3"]
    confidence: Float[Array, "L B N"] | None


class Reading(NamedTuple):
    """What layers got: every array with a leading layer axis. `sample` is None where poses were not asked for."""

    errors: tuple[ViewErrors, ViewErrors]
    sample: Sample | None


class Measured(NamedTuple):
    """What a batch of pairs gave: a reading for each group of probes, and one with a single layer for the model's own head.

    `scene_size` is each pair's mean distance of true points to view 1's camera.
    """

    groups: tuple[Reading, ...]
    head: Reading | None
    scene_size: Float[Array, " B"]


def measure(backbone: Backbone, probes: Probes, example: Example, pose: bool) -> Measured:
    """Every layer's errors on a batch of pairs and, with `pose`, what is needed to find the pose of view 2."""
    return _measure(backbone.module, probes.config, pose, backbone.params, probes.params, example)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(module: DUSt3R, config: ProbeConfig, pose: bool, params: dict, probe_params: dict, example: Example) -> Measured:
    has_head = module.config.head_type is not None
    features = cast(BackboneOutput, module.apply({"params": params}, *example.images, capture=config.layer_ids, head=has_head))

    def reading(pred1: Pointmap, pred2: Pointmap) -> Reading:
        return Reading(pair_errors(pred1, pred2, *example.targets), _sample(pred2) if pose else None)

    groups = []
    for index, group in enumerate(config.groups):

        def of_layer(layer: tuple[dict, tuple[Array, Array]], group: ProbeGroup = group) -> Reading:
            # One layer at a time, as a stack of one.
            weights, tokens = jax.tree.map(lambda leaf: leaf[None], layer)
            preds = read_group(weights, tokens, features.image_sizes, group, config)
            return reading(*jax.tree.map(lambda leaf: leaf[0], preds))

        tokens = tuple(jnp.stack([features[layer][view] for layer in group.layer_ids]) for view in (0, 1))
        groups.append(lax.map(of_layer, (probe_params[f"group{index}"], tokens)))
    head = None
    if features.pred1 is not None and features.pred2 is not None:
        head = jax.tree.map(lambda leaf: leaf[None], reading(features.pred1, features.pred2))
    return Measured(tuple(groups), head, mean_distance(*example.targets))


def _sample(pred: Pointmap) -> Sample:
    height, width = pred["pts3d"].shape[1:3]
    chosen = (slice(None), sampling(height), sampling(width))
    points = pred["pts3d"][chosen].reshape(len(pred["pts3d"]), -1, 3)
    return Sample(points, pred["conf"][chosen].reshape(len(points), -1) if "conf" in pred else None)
