"""What a model's layers and heads know, averaged over held-out synthetic scenes: the study behind docs/pocket.md.

scene ─▶ analyse_pair ─┬─▶ every layer's errors, matches, pose ─┬─▶ means over scenes, and their standard errors
                       └─▶ attention on true places ────────────┘
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.inputs import scene_inputs
from und3rstand_jax.analysis.pair import Layer, analyse_pair
from und3rstand_jax.analysis.true_place_attention import BothPlaces, attention_on, both_true_places
from und3rstand_jax.geometry.pose import pose_errors
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.layer_ids import HEAD, PAPER_STEPS, network_order, paper_layer_ids
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.progress import Stopwatch, with_progress

FIRST_BLOCKS = (1, 2)
"""The blocks from which on the kinds of steps are compared: block 0's first step has no layer before it."""


class Mean(NamedTuple):
    """A mean over scenes and its standard error; both NaN without a scene, the error with only one."""

    mean: float
    error: float


@dataclasses.dataclass(frozen=True)
class SceneMetrics:
    """One layer in one scene.

    Attributes:
        layer_id: as in `und3rstand_jax.model.layer_ids`, or its HEAD.
        view1, view2: normalised point errors.
        accuracy: share of right matches among those whose true place view 2 sees; NaN without any.
        known: share of the matches whose true place view 2 sees.
        rotation: error of view 2's pose in degrees; 180 where no pose was found.
    """

    layer_id: str
    view1: float
    view2: float
    accuracy: float
    known: float
    rotation: float


@dataclasses.dataclass(frozen=True)
class LayerMeans:
    """One layer over scenes: means of what `SceneMetrics` holds, but the median of the rotation error."""

    layer_id: str
    view1: Mean
    view2: Mean
    accuracy: Mean
    known: Mean
    rotation: float


@dataclasses.dataclass(frozen=True)
class DistanceGroup:
    """Scenes whose cameras are between `nearest` and `farthest` metres apart, and one layer's means over them."""

    nearest: float
    farthest: float
    means: LayerMeans


class AttentionShares(NamedTuple):
    """Shares of cross-attention of view 1's and view 2's decoder, means over scenes.

    Attributes:
        on_place: on the true place.
        on_another: on the true place of another scene, as a baseline: a head that looks at the same part of the image whatever it shows
            puts as much on both.
        error: standard error of their difference, which is taken scene by scene.
        even: on the true place if attention were uniform.
    """

    on_place: Float[np.ndarray, "2 blocks heads"]
    on_another: Float[np.ndarray, "2 blocks heads"]
    error: Float[np.ndarray, "2 blocks heads"]
    even: Float[np.ndarray, "2"]


class LayerStudy(NamedTuple):
    """Everything that is measured.

    Attributes:
        layers: of every layer, the head last.
        attention: of every head.
        by_distance: the last layer, by the distance between the cameras.
        falls: first block -> kind of step -> fall of both views' errors; see `falls`.
        turn: median angle between the two cameras in degrees: the rotation error of a model that predicts no rotation.
    """

    layers: list[LayerMeans]
    attention: AttentionShares
    by_distance: list[DistanceGroup]
    falls: dict[int, dict[str, tuple[Mean, Mean]]]
    turn: float


def study_layers(backbone: Backbone, probes: Probes, scenes: int, data: str = "synthetic", progress: bool = False) -> LayerStudy:
    """Measures every layer and head on held-out scenes.

    Args:
        backbone: the model.
        probes: on all its decoder layers.
        scenes: how many, at least 2, to compare a scene's attention with another scene's places.
        data: camera placement, as in `scene_inputs`.
        progress: whether a terminal shows a progress bar.

    Raises:
        CheckpointError: a decoder layer has no probe, so that a fall of the error could not be attributed to one step.
        OptionError: `data` does not describe synthetic scenes.
    """
    if without := sorted(set(paper_layer_ids(backbone.config.dec_depth)) - set(probes.layer_ids), key=network_order):
        raise CheckpointError(
            f"expected a probe on every decoder layer, found none on {', '.join(without)}; train probes with --layers all"
        )
    metrics, on_place, on_another, even, distances, turns = [], [], [], [], [], []
    last: BothPlaces | None = None
    for number in with_progress(range(scenes), "scenes", scenes, "scene", progress):
        inputs = scene_inputs(number, data, backbone.config.img_size)
        assert inputs.truth is not None, "a rendered scene has one"
        analysis = analyse_pair(backbone, probes, probes.layer_ids, inputs, {}, Stopwatch())
        places = both_true_places(inputs.truth, analysis.grids)
        on_place.append(attention_on(analysis.attention, places))
        on_another.append(np.full_like(on_place[-1], np.nan) if last is None else attention_on(analysis.attention, last))
        even.append([place.uniform_share for place in places])
        distances.append(float(np.linalg.norm(inputs.truth.pose[:3, 3])))
        turns.append(pose_errors(np.eye(4), inputs.truth.pose)[0])
        # Only numbers are kept: every scene's pointmaps would not fit into memory.
        metrics.append([scene_metrics(layer) for layer in analysis.layers])
        last = places
    difference = np.subtract(on_place, on_another)
    error = np.nanstd(difference, axis=0, ddof=1) / np.sqrt(np.isfinite(difference).sum(axis=0))
    probed = [[layer for layer in scene if layer.layer_id != HEAD] for scene in metrics]
    return LayerStudy(
        layers=[means(layer) for layer in zip(*metrics, strict=True)],
        attention=AttentionShares(np.nanmean(on_place, axis=0), np.nanmean(on_another, axis=0), error, np.nanmean(even, axis=0)),
        by_distance=by_distance([scene[-1] for scene in metrics], distances),
        falls={block: falls(probed, block) for block in FIRST_BLOCKS},
        turn=float(np.median(turns)),
    )


def scene_metrics(layer: Layer) -> SceneMetrics:
    """The metrics of one layer of a pair with ground truth."""
    accuracy, rotation, offsets = layer.accuracy, layer.pose.rotation_degrees, layer.correspondences.offsets
    assert offsets is not None, "the pair has ground truth"
    return SceneMetrics(
        layer.layer_id,
        *layer.errors,
        accuracy=np.nan if accuracy is None else accuracy,
        known=float(np.mean(~np.isnan(offsets))) if offsets.size else np.nan,
        rotation=180.0 if rotation is None else rotation,
    )


def mean_of(values: Sequence[float]) -> Mean:
    """Over the scenes whose value is not NaN."""
    known = np.asarray([value for value in values if not np.isnan(value)])
    error = known.std(ddof=1) / np.sqrt(known.size) if known.size > 1 else np.nan
    return Mean(float(known.mean()) if known.size else np.nan, float(error))


def means(scenes: Sequence[SceneMetrics]) -> LayerMeans:
    """One layer over scenes."""
    over = {name: mean_of([getattr(scene, name) for scene in scenes]) for name in ("view1", "view2", "accuracy", "known")}
    return LayerMeans(scenes[0].layer_id, **over, rotation=float(np.median([scene.rotation for scene in scenes])))


def by_distance(scenes: Sequence[SceneMetrics], distances: Sequence[float]) -> list[DistanceGroup]:
    """One layer's scenes in three groups of equal size, by the distance between the cameras in metres."""
    groups = np.array_split(np.argsort(distances), min(3, len(distances)))
    return [DistanceGroup(distances[group[0]], distances[group[-1]], means([scenes[index] for index in group])) for group in groups]


def falls(scenes: Sequence[Sequence[SceneMetrics]], first_block: int) -> dict[str, tuple[Mean, Mean]]:
    """For each kind of step, the fall of both views' errors over all decoder steps of that kind, the mean over scenes.

    A fall is the error before a step less that after it. Falls are summed within each scene first, so that the standard errors are
    those of what is compared, scene by scene.

    Args:
        scenes: each scene's layers in network order.
        first_block: steps before this block are left out.
    """

    def fall(kind: str, view: str) -> Mean:
        sums = []
        for layers in scenes:
            total = 0.0
            for before, after in zip(layers, layers[1:], strict=False):
                step = re.fullmatch(rf"decoder\.(\d+)\.{kind}", after.layer_id)
                if step and int(step[1]) >= first_block:
                    total += getattr(before, view) - getattr(after, view)
            sums.append(total)
        return mean_of(sums)

    return {kind: (fall(kind, "view1"), fall(kind, "view2")) for kind in PAPER_STEPS}
