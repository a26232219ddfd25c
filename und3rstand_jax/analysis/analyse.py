"""One set of views in one forward pass: each layer's points, their errors, matches and poses, and the attention maps.

views ─▶ model, once ─▶ tokens ─▶ each layer's probe ─▶ points ─┬─▶ errors
              ├──────▶ the head ──────────────────────▶ points ─┼─▶ pose of every view after the first
              ├──────▶ attention between the views              └─▶ matches of view 1 with every view after it
              └──────▶ the camera head, where there is one ───────▶ the model's own poses
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.attention_maps import attention_maps, captured_maps, comes_in_one_pass, pool_of, weights_ids
from und3rstand_jax.analysis.inputs import GroundTruth, Inputs
from und3rstand_jax.analysis.steps import kinds_of, stacks_of
from und3rstand_jax.analysis.view_set import (
    GROUND_TRUTH,
    OWN_POINTMAPS,
    Intrinsics,
    Layer,
    SetAnalysis,
    Views,
    as_truth,
)
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth, centred_intrinsics, focal_length
from und3rstand_jax.geometry.matching import THRESHOLD, Correspondences, correspondences, match_accuracy, overall_accuracy, true_places
from und3rstand_jax.geometry.metrics import point_errors
from und3rstand_jax.geometry.pose import Pose, PoseEstimate, camera_of_view, pose_against
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.head_choice import camera_head, pointmap_head
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.output import BackboneOutput, Cameras
from und3rstand_jax.model.start import token_grids
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.progress import Stopwatch, with_progress
from und3rstand_jax.support.text import JsonObject


def analyse_views(
    model: Backbone,
    probes: Probes | None,
    layers: Sequence[str],
    inputs: Inputs,
    record: JsonObject,
    stopwatch: Stopwatch,
    progress: bool = False,
) -> SetAnalysis:
    """Runs the model once on a set of views and measures every layer's geometry.

    The weights of all attention between the views are in memory at once: 4 bytes for each block, head and pair of tokens of two views.
    For DUSt3R and a pair, that is 1.2 GB at 512×512 and 0.7 GB at 512×384; for V views, V·(V - 1)/2 times as much. The weights of
    attention that reads all views are pooled, and take a second pass.

    Args:
        model: a backbone; its head, if it has one, runs too.
        probes: on its layers; None if there are none.
        layers: the probed layers to read, in network order. Without layers there must be a head.
        inputs: the views.
        record: what the result records about the run, such as where the model and the views come from; the intrinsics are added.
        stopwatch: times each stage.
        progress: whether a terminal shows progress bars.
    """
    in_one_pass = comes_in_one_pass(model.config)
    with stopwatch.time("forward"):
        weights = weights_ids(model.config) if in_one_pass else ()
        features = model(*inputs.views, capture=(*layers, *weights), head=pointmap_head(model.config) + camera_head(model.config))
        # JAX returns before it has computed; without waiting, the first layer would seem to take all the time.
        features = jax.block_until_ready(features)
    with stopwatch.time("probes"):
        geometry = _geometry_by_layer(probes, layers, features, progress)
        attention = captured_maps(features, model.config) if in_one_pass else ()
    cameras = None if features.cameras is None else _own_cameras(features.cameras)
    del features
    pool = pool_of(model.config, token_grids(inputs.sizes, model.config))
    if not in_one_pass:
        with stopwatch.time("attention"):
            attention = attention_maps(model, inputs, pool, progress)
    truth = inputs.truth
    reference = _own_geometry(geometry) if truth is None else _Reference(GROUND_TRUTH, truth.views, truth.poses, truth.intrinsics)
    patch, threshold = model.config.patch_size, THRESHOLD * max(width for _, width in inputs.sizes[1:])
    return SetAnalysis(
        title=inputs.title,
        images=inputs.images,
        grids=tuple((height // patch, width // patch) for height, width in inputs.sizes),
        layers=_measured(geometry, reference, truth, threshold, stopwatch, progress),
        attention=attention,
        truth=None if truth is None else truth.views,
        true_poses=None if truth is None else truth.poses,
        intrinsics=reference.intrinsics,
        reference=reference.name,
        match_threshold=threshold,
        record={**record, "intrinsics": reference.intrinsics_json},
        pool=pool,
        attention_kind=kinds_of(model.config).across,
        stacks=stacks_of(model.config),
        special_tokens=len(model.config.special_tokens(model.config.blocks[0].across)),
        own_poses=None if cameras is None else reference.poses_against(cameras),
    )


def _geometry_by_layer(probes: Probes | None, layers: Sequence[str], features: BackboneOutput, progress: bool) -> dict[str, Views]:
    """All views' geometry by every layer's probe, then by the head."""
    geometry: dict[str, Views] = {}
    if probes is not None:
        for layer in with_progress(layers, "probes", len(layers), "layer", progress):
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
    """Every layer's errors and poses against the reference, and its matches: against the true places, if there is ground truth."""
    with stopwatch.time("errors"):
        errors = {layer: point_errors(views, reference.points) for layer, views in geometry.items()}
    poses: dict[str, tuple[PoseEstimate, ...]] = {}
    with stopwatch.time("poses"):
        for layer, views in with_progress(geometry.items(), "poses", len(geometry), "layer", progress):
            poses[layer] = reference.poses_against(_cameras(views, reference.intrinsics))
    matches: dict[str, tuple[Correspondences, ...]] = {}
    with stopwatch.time("matches"):
        places = [None] * (len(reference.points) - 1) if truth is None else _places_in_later_views(truth)
        for layer, (first, *later) in with_progress(geometry.items(), "matches", len(geometry), "layer", progress):
            matches[layer] = tuple(correspondences((first, view), place) for view, place in zip(later, places, strict=True))
    return tuple(
        Layer(
            layer_id=layer,
            views=views,
            errors=errors[layer],
            poses=poses[layer],
            correspondences=matches[layer],
            accuracies=tuple(match_accuracy(found, match_threshold) for found in matches[layer]),
            accuracy=overall_accuracy(matches[layer], match_threshold),
        )
        for layer, views in geometry.items()
    )


def _cameras(views: Views, intrinsics: Intrinsics | None) -> tuple[Pose | None, ...]:
    """The camera of every view after the first, from its points."""
    if intrinsics is None:
        return (None,) * (len(views) - 1)
    return tuple(camera_of_view(view, lens) for view, lens in zip(views[1:], intrinsics[1:], strict=True))


def _own_cameras(cameras: Cameras) -> tuple[Pose | None, ...]:
    """Those of a model's camera head for every view after the first: camera to view 1's frame, None where one is not finite."""
    (extrinsics,) = np.asarray(cameras.extrinsics, np.float64)
    from_world = np.tile(np.eye(4), (len(extrinsics), 1, 1))
    from_world[:, :3] = extrinsics
    if not np.isfinite(from_world[0]).all():
        return (None,) * (len(from_world) - 1)
    return tuple(from_world[0] @ np.linalg.inv(one) if np.isfinite(one).all() else None for one in from_world[1:])


def _places_in_later_views(truth: GroundTruth) -> list[Float[np.ndarray, "H1 W1 2"] | None]:
    """Where every view after the first sees the pixels of view 1."""
    first, *later = truth.views
    cameras = zip(later, truth.poses[1:], truth.intrinsics[1:], strict=True)
    return [true_places((first, view), pose, lens) for view, pose, lens in cameras]


@dataclasses.dataclass(frozen=True)
class _Reference:
    """What layers are measured against: points of all views, and cameras, None where one was not found. `estimated` says how the
    intrinsics were found, if they were not given.
    """

    name: str
    points: tuple[ViewTruth, ...]
    poses: tuple[Pose | None, ...] | None
    intrinsics: Intrinsics | None
    estimated: str | None = None

    @property
    def later_poses(self) -> tuple[Pose | None, ...]:
        """The poses of every view after the first."""
        return (None,) * (len(self.points) - 1) if self.poses is None else self.poses[1:]

    def poses_against(self, cameras: Sequence[Pose | None]) -> tuple[PoseEstimate, ...]:
        """The cameras of every view after the first, with their angles to these."""
        return tuple(pose_against(camera, pose, self.scene_size) for camera, pose in zip(cameras, self.later_poses, strict=True))

    @functools.cached_property
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


def _own_geometry(geometry: Mapping[str, Views]) -> _Reference:
    """The model's own final pointmaps: its head's, or the last probed layer's where there is no head."""
    layer, views = list(geometry.items())[-1]
    name = OWN_POINTMAPS if layer == HEAD else f"the last probed layer's pointmaps ({layer})"
    points = as_truth(views)
    focal = focal_length(views[0].points, views[0].confidence)
    if focal is None:
        return _Reference(name, points, None, None)
    # One camera is assumed to have taken all photos. The other views' points lie in view 1's frame: focal lengths of their own
    # would take one more pass for each, with that view first.
    cameras = tuple(centred_intrinsics(focal, (view.points.shape[0], view.points.shape[1])) for view in views)
    estimated = f"focal length from view 1's points of {name}, for {'both' if len(views) == 2 else 'all'} views"
    return _Reference(name, points, (np.eye(4), *_cameras(views, cameras)), cameras, estimated)
