"""The measures of an edited pass: errors on the device, matches and poses on the host; or the errors of every later probe.

They come as a `measure` and, for the head, a `finish` for `und3rstand_jax.analysis.sweep`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.geometry.alignment import Alignment, aligned_errors
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.geometry.loss import Truth
from und3rstand_jax.geometry.matching import THRESHOLD, correspondences, true_places
from und3rstand_jax.geometry.pose import camera_errors, camera_of_view
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.config import ProbeConfig
from und3rstand_jax.probes.probes import read_layer

VIEW1, VIEW2, MATCHES, ROTATION, DIRECTION, KNOWN = "view1", "view2", "matches", "rotation", "direction", "known"

MEANING = {
    VIEW1: "normalised point error of view 1: mean distance to the true points, each in units of the pair's mean distance to camera 1",
    VIEW2: "the same of view 2",
    MATCHES: "share of right matches between the views, of those whose true place view 2 sees; 0 if no match is of those",
    ROTATION: "error of view 2's rotation in degrees; 180 where no pose was found",
    DIRECTION: "angle to the true direction of view 2's translation in degrees; 180 where no pose was found, unknown without a baseline",
}
"""What every number that is kept of a pair means."""

KNOWN_MEANING = "share of the matches between the views whose true place view 2 sees"

_MEANING_OF_SETS = {
    VIEW1: "normalised point error of view 1: mean distance to the true points, each in units of the set's mean distance to camera 1",
    MATCHES: "share of right matches between view 1 and each later view, pooled, of those whose true place the later view sees; 0 if no "
    "match is of those",
    ROTATION: "error of a later view's rotation in degrees, the mean over these views; 180 where no pose was found",
    DIRECTION: "angle to the true direction of a later view's translation in degrees, the mean over the views with a baseline; 180 where "
    "no pose was found, unknown where no view has a baseline",
    KNOWN: "share of the matches between view 1 and each later view, pooled, whose true place the later view sees",
}


def view_names(views: int) -> tuple[str, ...]:
    """The names of the views' errors: view1, view2, …"""
    return tuple(f"view{number}" for number in range(1, views + 1))


def meaning_of(views: int) -> dict[str, str]:
    """What every number that is kept of sets of this many views means; a set of two is a pair."""
    if views == 2:
        return {**MEANING, KNOWN: KNOWN_MEANING}
    first, *others = view_names(views)
    later = {name: f"the same of view {number}" for number, name in enumerate(others, start=2)}
    return {first: _MEANING_OF_SETS[VIEW1], **later, **{name: _MEANING_OF_SETS[name] for name in (MATCHES, ROTATION, DIRECTION, KNOWN)}}


class PairTruth(NamedTuple):
    """What errors are measured against: all views' normalised points, and the mean distance to camera 1 that they were divided by."""

    truth: Truth
    unit: Float[Array | np.ndarray, " S"]


class Pairs(NamedTuple):
    """S held-out pairs, or sets of more views, on the host: images (S, H, W, 3) in [-1, 1], the truth that errors need, and each set's
    complete ground truth.
    """

    views: tuple[Float[np.ndarray, "S _H _W 3"], ...]
    truth: PairTruth
    truths: tuple[GroundTruth, ...]

    def some(self, numbers: range | Sequence[int]) -> "Pairs":
        """The pairs with these numbers."""
        chosen = list(numbers)
        views, truth = jax.tree.map(lambda leaf: leaf[chosen], (self.views, self.truth))
        return Pairs(views, truth, tuple(self.truths[number] for number in chosen))


@dataclasses.dataclass(frozen=True)
class HeadMeasure:
    """Measures the model's own pointmaps, aligned with the true ones in one of the ways of `und3rstand_jax.geometry.alignment`."""

    alignment: Alignment = "scale"

    def __call__(self, output: BackboneOutput, truth: PairTruth, _: Any) -> dict[str, Array]:
        """Every view's error, and the points that `HeadFinish` needs."""
        errors = aligned_errors(output.pointmaps, truth.truth, jnp.asarray(truth.unit), self.alignment)
        return {**dict(zip(view_names(len(errors)), errors, strict=True)), **points_of(output.pointmaps)}


def points_of(preds: Sequence[Pointmap]) -> dict[str, Array]:
    """What `HeadFinish` reads besides the errors: `points1`, `points2`, … and, if there is any, the later views' `confidence2`, …"""
    points = {f"points{number}": pred["pts3d"] for number, pred in enumerate(preds, start=1)}
    return points | {f"confidence{number}": pred["conf"] for number, pred in enumerate(preds, start=1) if number > 1 and "conf" in pred}


@dataclasses.dataclass(frozen=True)
class HeadFinish:
    """Turns `HeadMeasure`'s arrays into the numbers of `meaning_of`, for each set; KNOWN only if asked for. Confidence is optional."""

    truths: tuple[GroundTruth, ...]
    with_known: bool = False

    def __call__(self, measured: Mapping[str, np.ndarray], pairs: Sequence[int]) -> dict[str, np.ndarray]:
        """The numbers of each example; `pairs` says which pair it is of."""
        names = view_names(len(self.truths[0].views))
        found = {name: np.full(len(pairs), np.nan) for name in (MATCHES, ROTATION, DIRECTION, KNOWN)}
        for index, number in enumerate(pairs):
            views = [ViewGeometry(measured["points1"][index], None)]
            for view in range(2, len(names) + 1):
                confidences = measured.get(f"confidence{view}")
                views.append(ViewGeometry(measured[f"points{view}"][index], None if confidences is None else confidences[index]))
            found[MATCHES][index], found[KNOWN][index] = self._matches(views, number)
            found[ROTATION][index], found[DIRECTION][index] = self.pose_errors(views, number)
        if not self.with_known:
            del found[KNOWN]
        return {name: measured[name] for name in names} | found

    def pose_errors(self, views: Sequence[ViewGeometry], number: int) -> tuple[float, float]:
        """Degrees of rotation and direction: means over the later views; the direction's over those with a baseline, NaN without any."""
        truth, size = self.truths[number], self._sizes[number]
        errors = [
            camera_errors(camera_of_view(view, intrinsics), pose, size)
            for view, intrinsics, pose in zip(views[1:], truth.intrinsics[1:], truth.poses[1:], strict=True)
        ]
        rotations, directions = zip(*errors, strict=True)
        known = [direction for direction in directions if not math.isnan(direction)]
        return float(np.mean(rotations)), float(np.mean(known)) if known else math.nan

    def _matches(self, views: Sequence[ViewGeometry], number: int) -> tuple[float, float]:
        """Two shares of the matches with later views: right ones among those with a known place, and those with one; NaN if undefined."""
        offsets, right = [], []
        for view, places in zip(views[1:], self._places[number], strict=True):
            found = correspondences((views[0], view), places).offsets
            assert found is not None, "the true places are given"
            offsets.append(found)
            right.append(found[~np.isnan(found)] <= THRESHOLD * view.points.shape[1])
        all_offsets, all_right = np.concatenate(offsets), np.concatenate(right)
        share = float(np.mean(~np.isnan(all_offsets))) if all_offsets.size else math.nan
        if not any(np.isfinite(places).any() for places in self._places[number]):
            return math.nan, share
        return float(all_right.mean()) if all_right.size else 0.0, share

    @functools.cached_property
    def _sizes(self) -> list[float]:
        """Mean distance of each set's true points to view 1's camera."""
        distances = ([np.linalg.norm(view.points[view.valid], axis=-1) for view in truth.views] for truth in self.truths)
        return [float(np.concatenate(of_views).mean()) if sum(map(len, of_views)) else 0.0 for of_views in distances]

    @functools.cached_property
    def _places(self) -> list[list[np.ndarray]]:
        """For each set, where view 1's pixels are in each later view."""
        return [
            [
                true_places((truth.views[0], view), pose, intrinsics)
                for view, pose, intrinsics in zip(truth.views[1:], truth.poses[1:], truth.intrinsics[1:], strict=True)
            ]
            for truth in self.truths
        ]


@dataclasses.dataclass(frozen=True)
class ProbesMeasure:
    """Measures what the probe of every captured layer reads; the probes' parameters are what the pairs share."""

    config: ProbeConfig
    alignment: Alignment = "scale"

    def __call__(self, output: BackboneOutput, truth: PairTruth, params: dict) -> dict[str, Array]:
        """Every view's error by layer, as `LAYER/view1`, `LAYER/view2`, …"""
        found: dict[str, Array] = {}
        for number, group in enumerate(self.config.groups):
            for index, layer in enumerate(group.layer_ids):
                if layer in output.activations:
                    of_layer = jax.tree.map(lambda leaf, index=index: leaf[index], params[f"group{number}"])
                    preds = read_layer(of_layer, tuple(map(jnp.asarray, output.patches(layer))), output.image_sizes, group, self.config)
                    errors = aligned_errors(preds, truth.truth, jnp.asarray(truth.unit), self.alignment)
                    found |= {f"{layer}/{view}": error for view, error in zip(view_names(len(errors)), errors, strict=True)}
        return found
