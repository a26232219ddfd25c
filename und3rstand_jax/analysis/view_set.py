"""The analysis of one set of views: each layer's points, errors, poses and matches, and the attention maps.

`und3rstand_jax.analysis.analyse` computes it; `und3rstand_jax.report` writes it as numbers, figures and a page. Everything is NumPy
arrays and plain values.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.matching import Correspondences
from und3rstand_jax.geometry.pose import PoseEstimate
from und3rstand_jax.model.output import Grids
from und3rstand_jax.support.text import JsonObject

GROUND_TRUTH, OWN_POINTMAPS = "ground truth", "the model's own final pointmaps"
"""What layers may be measured against: values of `SetAnalysis.reference`."""

Views = tuple[ViewGeometry, ...]
Intrinsics = tuple[Float[np.ndarray, "3 3"], ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """The views as one layer, or the head, sees them.

    Attributes:
        layer_id: as in `und3rstand_jax.model.layer_ids`, or its HEAD.
        views: every view's geometry.
        errors: normalised point error of each view: mean distance between its points and the reference's, after the pointmaps of all
            views are divided by their mean distance to the origin (the regression term of DUSt3R's loss). See `SetAnalysis.reference`.
        poses: of every view after the first.
        correspondences: between view 1 and every view after it.
        accuracies: for each later view, the share of its correspondences with a known true place that are within
            `SetAnalysis.match_threshold` pixels of that place; None without ground truth, or if no match has a known place.
        accuracy: the same over all correspondences together.
    """

    layer_id: str
    views: Views
    errors: tuple[float, ...]
    poses: tuple[PoseEstimate, ...]
    correspondences: tuple[Correspondences, ...]
    accuracies: tuple[float | None, ...]
    accuracy: float | None

    @property
    def rotation_degrees(self) -> float | None:
        """Median over the later views of the angle to the reference's camera (for a pair, view 2's angle); None if no angle is known."""
        return median_known([pose.rotation_degrees for pose in self.poses])

    @property
    def translation_degrees(self) -> float | None:
        """The same for the angle between the directions of translation."""
        return median_known([pose.translation_degrees for pose in self.poses])


def median_known(numbers: Sequence[float | None]) -> float | None:
    """The median of those that are not None; None if all are."""
    known = [number for number in numbers if number is not None]
    return float(np.median(known)) if known else None


def median_angles(poses: Sequence[PoseEstimate]) -> tuple[float | None, float | None]:
    """Medians in degrees of the angles of rotations, and of the directions of translations; None where no angle is known."""
    return median_known([pose.rotation_degrees for pose in poses]), median_known([pose.translation_degrees for pose in poses])


@dataclasses.dataclass(frozen=True)
class Attention:
    """Post-softmax attention of one block: for each view, each head's weights from every patch to the patches it attends to.

    Attributes:
        block: counted from 0.
        weights: (heads, N, M) for each view whose patches are the queries. Rows sum to 1 or, where special tokens are read too, to the
            share that does not go to them. Queries are row-major over that view's `SetAnalysis.cells`. Keys are the patches of one or more
            views, view after view, each row-major over its cells. Where a cell has several tokens, weights are summed over its keys and
            averaged over its queries.
        keys: for each view whose patches are the queries, the numbers, from 1, of the views that the keys come from, in their order.
    """

    block: int
    weights: tuple[Float[np.ndarray, "heads _N _M"], ...]
    keys: tuple[tuple[int, ...], ...]

    @classmethod
    def to_others(cls, block: int, weights: Sequence[Float[np.ndarray, "heads _N _M"]]) -> "Attention":
        """Cross-attention: every view attends to all others, in order."""
        numbers = range(1, len(weights) + 1)
        return cls(block, tuple(weights), tuple(tuple(other for other in numbers if other != view) for view in numbers))

    @classmethod
    def to_itself(cls, block: int, weights: Sequence[Float[np.ndarray, "heads _N _M"]]) -> "Attention":
        """Self-attention: every view attends to its own tokens."""
        return cls(block, tuple(weights), tuple((view,) for view in range(1, len(weights) + 1)))

    def between(self, view: int, other: int, grids: Grids) -> Float[np.ndarray, "heads N M"]:
        """The weights from one view's tokens to those of one of its `keys`; both views count from 1."""
        ends = list(itertools.accumulate(grids[key - 1][0] * grids[key - 1][1] for key in self.keys[view - 1]))
        place = self.keys[view - 1].index(other)
        return self.weights[view - 1][..., ends[place - 1] if place else 0 : ends[place]]


@dataclasses.dataclass(frozen=True)
class SetAnalysis:
    """Everything that is measured on one set of V views, two or more.

    Attributes:
        title: one line for headings.
        images: the views, RGB.
        grids: (rows, columns) of each view's patches.
        layers: in network order; the model's own head last, where it has one.
        attention: between the views, of every block, in order.
        truth: every view's true points, where the images were rendered.
        true_poses: every view's camera in view 1's frame, the identity first, if known.
        intrinsics: of all cameras in pixels, pixel centres at integers. The true ones if they are known, else those that poses were
            estimated with: all views then share the focal length that fits the reference's points of view 1, since the other views' points
            are in view 1's frame and do not determine one. None if no focal length fits; then there are no poses either.
        reference: what `Layer.errors` are measured against: GROUND_TRUTH; without it OWN_POINTMAPS, the head's; without a head "the last
            probed layer's pointmaps (ID)".
        match_threshold: in pixels; see `Layer.accuracies`.
        record: what was run: checkpoint, provenance, layers, seconds, versions.
        pool: how many rows and columns of patches an attention cell has; see `und3rstand_jax.analysis.attention_maps`.
        attention_kind: the kind of step that the attention is; see `und3rstand_jax.analysis.steps`.
        stacks: the stacks of the blocks that have it.
        special_tokens: how many each view has; attention reads them, and the maps leave them out.
        own_poses: for every view after the first, the pose from the model's camera head; None if the model has none.
    """

    title: str
    images: tuple[UInt8[np.ndarray, "_H _W 3"], ...]
    grids: Grids
    layers: tuple[Layer, ...]
    attention: tuple[Attention, ...]
    truth: tuple[ViewTruth, ...] | None
    true_poses: tuple[Float[np.ndarray, "4 4"], ...] | None
    intrinsics: Intrinsics | None
    reference: str
    match_threshold: float
    record: JsonObject
    pool: int = 1
    attention_kind: str = "cross_attn"
    stacks: tuple[str, ...] = ("decoder",)
    special_tokens: int = 0
    own_poses: tuple[PoseEstimate, ...] | None = None

    @property
    def cells(self) -> Grids:
        """(rows, columns) of each view's cells in the attention: squares of `pool` × `pool` patches, fewer at the far edges."""
        return tuple((-(-rows // self.pool), -(-columns // self.pool)) for rows, columns in self.grids)

    @property
    def reference_points(self) -> tuple[ViewTruth, ...]:
        """What `reference` names: the true points, or else the last layer's."""
        return as_truth(self.layers[-1].views) if self.truth is None else self.truth

    @property
    def ground_truth(self) -> GroundTruth | None:
        """The scene's geometry; None if it is not known."""
        if self.truth is None or self.true_poses is None or self.intrinsics is None:
            return None
        return GroundTruth(self.truth, self.true_poses, self.intrinsics)

    @property
    def later_views(self) -> range:
        """The numbers of the views after the first: 2, …, V."""
        return range(2, len(self.images) + 1)


def as_truth(views: Views) -> tuple[ViewTruth, ...]:
    """Predicted points as a reference to measure others against: valid where they are finite."""
    return tuple(ViewTruth(view.points, np.isfinite(view.points).all(axis=-1)) for view in views)
