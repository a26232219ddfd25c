"""What an edited pass is measured by: errors on the device, matches and pose of view 2 on the host; or the errors of every later probe.

Both come as a `measure` and a `finish` for `und3rstand_jax.analysis.sweep`.
"""

import dataclasses
import functools
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
from und3rstand_jax.geometry.matching import THRESHOLD, correspondences, match_accuracy, true_places
from und3rstand_jax.geometry.pose import camera_errors, camera_of_view
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
"""Of every number that is kept, what it is."""

KNOWN_MEANING = "share of the matches between the views whose true place view 2 sees"


class PairTruth(NamedTuple):
    """What errors are measured against: both views' normalised points, and the mean distance to camera 1 that they were divided by."""

    truth: Truth
    unit: Float[Array | np.ndarray, " S"]


class Pairs(NamedTuple):
    """S held-out pairs, on the host: images (S, H, W, 3) in [-1, 1], the truth that errors need, and each pair's whole."""

    views: tuple[Float[np.ndarray, "S _H _W 3"], ...]
    truth: PairTruth
    truths: tuple[GroundTruth, ...]

    def some(self, numbers: range | Sequence[int]) -> "Pairs":
        """Some of them."""
        chosen = list(numbers)
        views, truth = jax.tree.map(lambda leaf: leaf[chosen], (self.views, self.truth))
        return Pairs(views, truth, tuple(self.truths[number] for number in chosen))


@dataclasses.dataclass(frozen=True)
class HeadMeasure:
    """Measures the model's own pointmaps, laid over the true ones in one of the ways of `und3rstand_jax.geometry.alignment`."""

    alignment: Alignment = "scale"

    def __call__(self, output: BackboneOutput, truth: PairTruth, _: Any) -> dict[str, Array]:
        """Both views' errors, and the points that `HeadFinish` goes on with."""
        one, two = output.pointmaps
        errors = aligned_errors(output.pointmaps, truth.truth, jnp.asarray(truth.unit), self.alignment)
        points = {"points1": one["pts3d"], "points2": two["pts3d"], "confidence2": two["conf"]}
        return {VIEW1: errors[0], VIEW2: errors[1], **points}


@dataclasses.dataclass(frozen=True)
class HeadFinish:
    """From `HeadMeasure`'s arrays to the five numbers of each pair; or six, with KNOWN. Points may have no confidence."""

    truths: tuple[GroundTruth, ...]
    with_known: bool = False

    def __call__(self, measured: Mapping[str, np.ndarray], pairs: Sequence[int]) -> dict[str, np.ndarray]:
        """Of each example, which is of that pair."""
        right, share, rotation, direction = (np.full(len(pairs), np.nan) for _ in range(4))
        confidences = measured.get("confidence2", [None] * len(pairs))
        for index, number in enumerate(pairs):
            truth = self.truths[number]
            view1 = ViewGeometry(measured["points1"][index], None)
            view2 = ViewGeometry(measured["points2"][index], confidences[index])
            matches = correspondences((view1, view2), self._places[number])
            accuracy = match_accuracy(matches, THRESHOLD * view2.points.shape[1])
            if matches.offsets is not None and matches.offsets.size:
                share[index] = np.mean(~np.isnan(matches.offsets))
            if np.isfinite(self._places[number]).any():
                right[index] = 0.0 if accuracy is None else accuracy
            rotation[index], direction[index] = camera_errors(camera_of_view(view2, truth.intrinsics[1]), truth.pose, self._sizes[number])
        found = {VIEW1: measured[VIEW1], VIEW2: measured[VIEW2]}
        return found | {MATCHES: right, ROTATION: rotation, DIRECTION: direction} | ({KNOWN: share} if self.with_known else {})

    @functools.cached_property
    def _sizes(self) -> list[float]:
        """Mean distance of each pair's true points to view 1's camera."""
        distances = ([np.linalg.norm(view.points[view.valid], axis=-1) for view in truth.views] for truth in self.truths)
        return [float(np.concatenate(both).mean()) if sum(map(len, both)) else 0.0 for both in distances]

    @functools.cached_property
    def _places(self) -> list[np.ndarray]:
        return [true_places(truth.views, truth.pose, truth.intrinsics[1]) for truth in self.truths]


@dataclasses.dataclass(frozen=True)
class ProbesMeasure:
    """Measures what every probe reads whose layer was captured; their parameters are what the pairs share."""

    config: ProbeConfig
    alignment: Alignment = "scale"

    def __call__(self, output: BackboneOutput, truth: PairTruth, params: dict) -> dict[str, Array]:
        """Both views' errors by layer, as `LAYER/view1` and `LAYER/view2`."""
        found: dict[str, Array] = {}
        for number, group in enumerate(self.config.groups):
            for index, layer in enumerate(group.layer_ids):
                if layer in output.activations:
                    of_layer = jax.tree.map(lambda leaf, index=index: leaf[index], params[f"group{number}"])
                    preds = read_layer(of_layer, tuple(map(jnp.asarray, output[layer])), output.image_sizes, group, self.config)
                    errors = aligned_errors(preds, truth.truth, jnp.asarray(truth.unit), self.alignment)
                    found |= {f"{layer}/{view}": error for view, error in zip((VIEW1, VIEW2), errors, strict=True)}
        return found
