"""What a report is made of. Everything here is a plain NumPy array or a plain value: computing it and showing it are apart.

checkpoint + two images ─▶ measure ─▶ Report ─▶ numbers (JSON, npz), figures (PNG, SVG), page (HTML)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from und3rstand_jax.layers import HEAD

GROUND_TRUTH, OWN_POINTMAPS = "ground truth", "the model's own final pointmaps"
"""What layers may be measured against, as `Report.reference` calls it."""


def layer_name(layer_id: str) -> str:
    """A layer as texts call it."""
    return "the model's own head" if layer_id == HEAD else layer_id


@dataclasses.dataclass(frozen=True)
class ViewGeometry:
    """One view as a layer sees it: points (H, W, 3) in the frame of view 1's camera (x right, y down, z forward), in the model's own
    unit, which differs from layer to layer, and confidence (H, W), at least 1 for DUSt3R's activation; None where probes give none.
    """

    points: Float[np.ndarray, "H W 3"]
    confidence: Float[np.ndarray, "H W"] | None


@dataclasses.dataclass(frozen=True)
class ViewTruth:
    """One view's true points (H, W, 3) in the frame of view 1's camera, in the data's unit, and where they are known."""

    points: Float[np.ndarray, "H W 3"]
    valid: Bool[np.ndarray, "H W"]


@dataclasses.dataclass(frozen=True)
class Pose:
    """Camera of view 2 in view 1's frame, by PnP on a layer's pointmap of view 2; its translation is in that pointmap's unit.

    Angles (degrees) are against the reference's camera (`Report.reference`); None where nothing was found or nothing is known to compare
    with.
    """

    camera2_to_1: Float[np.ndarray, "4 4"] | None
    rotation_degrees: float | None
    translation_degrees: float | None


@dataclasses.dataclass(frozen=True)
class Correspondences:
    """Pixels of both views that a layer takes for the same point: mutual nearest neighbours of its points.

    `pixels1`, `pixels2`: (x, y) of each pair. `offsets`: distance in pixels of view 2 between the matched and the true place, NaN
    where the truth does not see the point in view 2; None without ground truth.
    """

    pixels1: Int[np.ndarray, "K 2"]
    pixels2: Int[np.ndarray, "K 2"]
    offsets: Float[np.ndarray, " K"] | None


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer's (or the head's) view of the pair.

    Attributes:
        layer_id: as in `und3rstand_jax.layers`, or its HEAD.
        views: both views' geometry.
        errors: normalised point error of each view: mean distance between its points and the reference's after each pair of pointmaps is
            divided by its mean distance to the origin (DUSt3R's regression loss). `Report.reference` says what that is.
        pose: of view 2.
        correspondences: between the views.
        accuracy: share of the correspondences with a known true place that lie within `Report.match_threshold` pixels of it; None
            without ground truth, or where no match has a known place.
    """

    layer_id: str
    views: tuple[ViewGeometry, ViewGeometry]
    errors: tuple[float, float]
    pose: Pose
    correspondences: Correspondences
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Attention:
    """Post-softmax cross-attention of one decoder block: for every head and every token of a view, weights over the other's tokens.

    `from_view1`: (heads, N1, N2), rows sum to 1; `from_view2`: (heads, N2, N1). Tokens are row-major over the `grids`.
    """

    block: int
    from_view1: Float[np.ndarray, "heads N1 N2"]
    from_view2: Float[np.ndarray, "heads N2 N1"]


@dataclasses.dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        title: what was looked at, in a line.
        images: both views, RGB.
        grids: (rows, columns) of each view's tokens.
        layers: in network order; the model's own head last, where it has one.
        attention: of every decoder block, in order.
        truth: of both views, where the images were rendered.
        true_pose: view 2's camera in view 1's frame, where known.
        intrinsics: of both views' cameras in pixels, pixel centres at integers: the true ones where they are known, else those that
            poses were found with: the focal length by the reference's points of view 1, for both views, since view 2's points, in view
            1's frame, tell none of its own. None where nothing tells a focal length; then there are no poses either.
        reference: what `Layer.errors` are measured against: GROUND_TRUTH; without it OWN_POINTMAPS, the head's; without a head "the last
            probed layer's pointmaps (ID)".
        match_threshold: pixels.
        facts: what was run: checkpoint, provenance, layers, seconds, versions; plain JSON values, nested.
    """

    title: str
    images: tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]]
    grids: tuple[tuple[int, int], tuple[int, int]]
    layers: tuple[Layer, ...]
    attention: tuple[Attention, ...]
    truth: tuple[ViewTruth, ViewTruth] | None
    true_pose: Float[np.ndarray, "4 4"] | None
    intrinsics: tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 3"]] | None
    reference: str
    match_threshold: float
    facts: Mapping[str, Any]
