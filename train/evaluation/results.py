"""What an evaluation finds: a record a layer, averaged over pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from train.evaluation.metrics import ViewErrors

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
