"""Figures of layers in single scenes, and their means over scenes with the standard errors of those."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from und3rstand_jax.analysis.pair import Layer
from und3rstand_jax.model.layer_ids import PAPER_STEPS


class Mean(NamedTuple):
    """A mean over scenes and its standard error; NaN without a scene, and the error with one."""

    mean: float
    error: float

    def told(self, digits: int = 3) -> str:
        """As tables show it."""
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"

    def told_as_share(self) -> str:
        """In percent."""
        return f"{100 * self.mean:.0f} ± {100 * self.error:.0f} %"


@dataclasses.dataclass(frozen=True)
class SceneFigures:
    """Of one layer in one scene.

    Attributes:
        view1, view2: normalised point errors.
        accuracy: share of right matches among those whose true place view 2 sees; NaN without any.
        known: share of the matches whose true place view 2 sees.
        rotation: of view 2's pose, in degrees from the true one; 180 where no pose was found.
    """

    layer_id: str
    view1: float
    view2: float
    accuracy: float
    known: float
    rotation: float


@dataclasses.dataclass(frozen=True)
class LayerMeans:
    """Of one layer over scenes: means as in `SceneFigures`, and of the rotation the median."""

    layer_id: str
    view1: Mean
    view2: Mean
    accuracy: Mean
    known: Mean
    rotation: float


@dataclasses.dataclass(frozen=True)
class DistanceGroup:
    """Scenes whose cameras are between `nearest` and `farthest` metres apart, and what a layer is worth in them."""

    nearest: float
    farthest: float
    means: LayerMeans


def scene_figures(layer: Layer) -> SceneFigures:
    """The figures of one layer of a report with ground truth."""
    accuracy, rotation, offsets = layer.accuracy, layer.pose.rotation_degrees, layer.correspondences.offsets
    assert offsets is not None, "a rendered scene has its truth"
    return SceneFigures(
        layer.layer_id,
        *layer.errors,
        accuracy=np.nan if accuracy is None else accuracy,
        known=float(np.mean(~np.isnan(offsets))) if offsets.size else np.nan,
        rotation=180.0 if rotation is None else rotation,
    )


def mean_of(values: Sequence[float]) -> Mean:
    """Over the scenes that have a value."""
    known = np.asarray([value for value in values if not np.isnan(value)])
    error = known.std(ddof=1) / np.sqrt(known.size) if known.size > 1 else np.nan
    return Mean(float(known.mean()) if known.size else np.nan, float(error))


def means(found: Sequence[SceneFigures]) -> LayerMeans:
    """Of one layer over scenes."""
    over = {name: mean_of([getattr(scene, name) for scene in found]) for name in ("view1", "view2", "accuracy", "known")}
    return LayerMeans(found[0].layer_id, **over, rotation=float(np.median([scene.rotation for scene in found])))


def by_distance(found: Sequence[SceneFigures], distances: Sequence[float]) -> list[DistanceGroup]:
    """One layer's scenes in three groups of equal size."""
    groups = np.array_split(np.argsort(distances), min(3, len(distances)))
    return [DistanceGroup(distances[group[0]], distances[group[-1]], means([found[index] for index in group])) for group in groups]


def falls(scenes: Sequence[Sequence[SceneFigures]], first_block: int) -> dict[str, tuple[Mean, Mean]]:
    """By kind of step, how much both views' errors fall over all decoder steps of that kind from a block on, in the mean over scenes.

    A fall is the error before a step less that after it. `scenes` holds each scene's layers in network order. Summed within each scene
    first, so that the standard errors are those of what is compared, scene by scene.
    """
    return {kind: (_fall(scenes, kind, first_block, "view1"), _fall(scenes, kind, first_block, "view2")) for kind in PAPER_STEPS}


def _fall(scenes: Sequence[Sequence[SceneFigures]], kind: str, first_block: int, view: str) -> Mean:
    def of_scene(layers: Sequence[SceneFigures]) -> float:
        steps = ((before, after) for before, after in zip(layers, layers[1:], strict=False) if _is_step(after.layer_id, kind, first_block))
        return sum(getattr(before, view) - getattr(after, view) for before, after in steps)

    return mean_of([of_scene(layers) for layers in scenes])


def _is_step(layer_id: str, kind: str, first_block: int) -> bool:
    stack, *place = layer_id.split(".")
    return stack == "decoder" and len(place) == 2 and place[1] == kind and int(place[0]) >= first_block
