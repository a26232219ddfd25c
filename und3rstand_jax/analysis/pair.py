"""One pair of views in one forward pass: each layer's points, their errors, matches and pose, and the attention maps.

    views ─▶ model, once ─▶ tokens ─▶ each layer's probe ─▶ points ─┬─▶ errors
                  ├──────▶ the head ──────────────────────▶ points ─┼─▶ pose of view 2
                  └──────▶ cross-attention weights                  └─▶ matches between the views

The result holds plain NumPy arrays and plain values; `und3rstand_jax.report` writes it as numbers, figures and a page.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from und3rstand_jax.analysis.inputs import GroundTruth, Inputs
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth, centred_intrinsics, focal_length
from und3rstand_jax.geometry.matching import THRESHOLD, Correspondences, correspondences, match_accuracy, true_places
from und3rstand_jax.geometry.metrics import point_errors
from und3rstand_jax.geometry.pose import PoseEstimate, pose_against, second_camera
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.head_choice import pointmap_head
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.output import BackboneOutput, Grids
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.progress import Stopwatch, with_progress
from und3rstand_jax.support.text import JsonObject

GROUND_TRUTH, OWN_POINTMAPS = "ground truth", "the model's own final pointmaps"
"""What layers may be measured against: values of `PairAnalysis.reference`."""

Views = tuple[ViewGeometry, ...]
Intrinsics = tuple[Float[np.ndarray, "3 3"], ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """The pair as one layer, or the head, sees it.

    Attributes:
        layer_id: as in `und3rstand_jax.model.layer_ids`, or its HEAD.
        views: both views' geometry.
        errors: normalised point error of each view: mean distance between its points and the reference's, after each pair of pointmaps
            is divided by its mean distance to the origin (the regression term of DUSt3R's loss). See `PairAnalysis.reference`.
        pose: of view 2.
        correspondences: between the views.
        accuracy: share of the correspondences with a known true place that lie within `PairAnalysis.match_threshold` pixels of it; None
            without ground truth, or where no match has a known place.
    """

    layer_id: str
    views: Views
    errors: tuple[float, ...]
    pose: PoseEstimate
    correspondences: Correspondences
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Attention:
    """Post-softmax cross-attention of one decoder block: each head's weights of every token of a view over the other view's tokens.

    Rows sum to 1. Tokens are row-major over `PairAnalysis.grids`.
    """

    block: int
    from_view1: Float[np.ndarray, "heads N1 N2"]
    from_view2: Float[np.ndarray, "heads N2 N1"]


@dataclasses.dataclass(frozen=True)
class PairAnalysis:
    """Everything that is measured of one pair.

    Attributes:
        title: one line for headings.
        images: both views, RGB.
        grids: (rows, columns) of each view's tokens.
        layers: in network order; the model's own head last, where it has one.
        attention: of every decoder block, in order.
        truth: both views' true points, where the images were rendered.
        true_pose: camera 2 in view 1's frame, where known.
        intrinsics: of both cameras in pixels, pixel centres at integers. The true ones where they are known, else the ones that poses
            were estimated with: for both views the focal length that fits the reference's points of view 1, since view 2's points lie
            in view 1's frame and determine none. None where no focal length fits; then there are no poses either.
        reference: what `Layer.errors` are measured against: GROUND_TRUTH; without it OWN_POINTMAPS, the head's; without a head "the last
            probed layer's pointmaps (ID)".
        match_threshold: pixels.
        record: what was run: checkpoint, provenance, layers, seconds, versions.
    """

    title: str
    images: tuple[UInt8[np.ndarray, "_H _W 3"], ...]
    grids: Grids
    layers: tuple[Layer, ...]
    attention: tuple[Attention, ...]
    truth: tuple[ViewTruth, ...] | None
    true_pose: Float[np.ndarray, "4 4"] | None
    intrinsics: Intrinsics | None
    reference: str
    match_threshold: float
    record: JsonObject

    @property
    def reference_points(self) -> tuple[ViewTruth, ...]:
        """What `reference` names: the true points, or else the last layer's."""
        return as_truth(self.layers[-1].views) if self.truth is None else self.truth


def analyse_pair(
    model: Backbone,
    probes: Probes | None,
    layers: Sequence[str],
    inputs: Inputs,
    record: JsonObject,
    stopwatch: Stopwatch,
    progress: bool = False,
) -> PairAnalysis:
    """Runs the model once on a pair of views and measures every layer's geometry.

    The weights of all cross-attention are held at once, 4 bytes for each block, head and pair of tokens of the two views: for a DUSt3R
    1.2 GB at 512×512, 0.7 GB at 512×384.

    Args:
        model: a backbone; its head runs where it has one.
        probes: on its layers; None where there are none.
        layers: the probed layers to read, in network order. Without layers there must be a head.
        inputs: the views.
        record: what the result records of the run, such as where model and views come from; the intrinsics are added.
        stopwatch: times each stage.
        progress: whether a terminal shows progress bars.
    """
    with stopwatch.time("forward"):
        features = model(*inputs.views, capture=(*layers, *_weights_ids(model)), head=pointmap_head(model.config))
        # JAX returns before it has computed; without waiting, the first layer would seem to take all the time.
        features = jax.block_until_ready(features)
    with stopwatch.time("probes"):
        geometry = _geometry_by_layer(probes, layers, features, progress)
        attention = tuple(
            Attention(block, *tuple(np.asarray(weights, np.float32)[0] for weights in features[layer]))
            for block, layer in enumerate(_weights_ids(model))
        )
    del features
    truth = inputs.truth
    reference = _own_geometry(geometry) if truth is None else _Reference(GROUND_TRUTH, truth.views, truth.pose, truth.intrinsics)
    patch, threshold = model.config.patch_size, THRESHOLD * inputs.sizes[1][1]
    return PairAnalysis(
        title=inputs.title,
        images=inputs.images,
        grids=tuple((height // patch, width // patch) for height, width in inputs.sizes),
        layers=_measured(geometry, reference, truth, threshold, stopwatch, progress),
        attention=attention,
        truth=None if truth is None else truth.views,
        true_pose=None if truth is None else truth.pose,
        intrinsics=reference.intrinsics,
        reference=reference.name,
        match_threshold=threshold,
        record={**record, "intrinsics": reference.intrinsics_json},
    )


def _weights_ids(model: Backbone) -> list[str]:
    """Ids of the cross-attention weights, block by block."""
    return [f"decoder.{block}.cross_attn.weights" for block in range(model.config.dec_depth)]


def _geometry_by_layer(probes: Probes | None, layers: Sequence[str], features: BackboneOutput, progress: bool) -> dict[str, Views]:
    """Both views' geometry by every layer's probe, then by the head."""
    geometry: dict[str, Views] = {}
    if probes is not None:
        for layer in with_progress(layers, "reading layers", len(layers), "layer", progress):
            geometry[layer] = tuple(map(ViewGeometry.of, probes.read_layer(layer, features)))
    if features.pointmaps:
        geometry[HEAD] = tuple(map(ViewGeometry.of, features.pointmaps))
    return geometry


def _measured(
    geometry: Mapping[str, Views],
    reference: "_Reference",
    truth: GroundTruth | None,
    match_threshold: float,
    stopwatch: Stopwatch,
    progress: bool,
) -> tuple[Layer, ...]:
    """Every layer's errors and pose against the reference, and its matches: against the true places, where there is a truth."""
    with stopwatch.time("errors"):
        errors = {layer: point_errors(views, reference.points) for layer, views in geometry.items()}
    poses: dict[str, PoseEstimate] = {}
    with stopwatch.time("poses"):
        scene_size = reference.scene_size
        for layer, (_, view2) in with_progress(geometry.items(), "poses", len(geometry), "layer", progress):
            camera = None if reference.intrinsics is None else second_camera(view2, reference.intrinsics[1])
            poses[layer] = pose_against(camera, reference.pose, scene_size)
    matches: dict[str, Correspondences] = {}
    with stopwatch.time("matches"):
        places = None if truth is None else true_places(truth.views, truth.pose, truth.intrinsics[1])
        for layer, views in with_progress(geometry.items(), "matches", len(geometry), "layer", progress):
            matches[layer] = correspondences(views, places)
    return tuple(
        Layer(layer, views, errors[layer], poses[layer], matches[layer], match_accuracy(matches[layer], match_threshold))
        for layer, views in geometry.items()
    )


class _Reference(NamedTuple):
    """What layers are measured against. `estimated` says how the intrinsics were found, where they were not given."""

    name: str
    points: tuple[ViewTruth, ...]
    pose: Float[np.ndarray, "4 4"] | None
    intrinsics: Intrinsics | None
    estimated: str | None = None

    @property
    def scene_size(self) -> float:
        """Mean distance of the known points to view 1's camera."""
        distances = np.concatenate([np.linalg.norm(view.points[view.valid], axis=-1) for view in self.points])
        return float(distances.mean()) if distances.size else 0.0

    @property
    def intrinsics_json(self) -> JsonObject | None:
        """The intrinsics as JSON."""
        if self.intrinsics is None:
            return None
        found: dict[str, object] = {f"view{number}": camera.tolist() for number, camera in enumerate(self.intrinsics, start=1)}
        return found if self.estimated is None else {**found, "estimated": self.estimated}


def as_truth(views: Views) -> tuple[ViewTruth, ...]:
    """Predicted points as what others are measured against: known where they are finite."""
    return tuple(ViewTruth(view.points, np.isfinite(view.points).all(axis=-1)) for view in views)


def _own_geometry(geometry: Mapping[str, Views]) -> _Reference:
    """The model's own final pointmaps: its head's, or the last probed layer's where there is no head."""
    layer, views = list(geometry.items())[-1]
    name = OWN_POINTMAPS if layer == HEAD else f"the last probed layer's pointmaps ({layer})"
    points = as_truth(views)
    focal = focal_length(views[0].points, views[0].confidence)
    if focal is None:
        return _Reference(name, points, None, None)
    # One camera is assumed to have taken both photos. View 2's points lie in view 1's frame: its own focal length would take another
    # pass with the views swapped.
    cameras = tuple(centred_intrinsics(focal, (view.points.shape[0], view.points.shape[1])) for view in views)
    estimated = f"focal length from view 1's points of {name}, for both views"
    return _Reference(name, points, second_camera(views[1], cameras[1]), cameras, estimated)
