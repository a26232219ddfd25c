"""What the page's scripts read besides the packed arrays and the images, as JSON values."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.head_use import HeadUse
from und3rstand_jax.analysis.steps import words_of
from und3rstand_jax.analysis.true_place_attention import set_true_places
from und3rstand_jax.analysis.view_set import Layer, SetAnalysis, median_angles
from und3rstand_jax.geometry.cameras import centred_intrinsics
from und3rstand_jax.geometry.matching import Correspondences, drawn_matches
from und3rstand_jax.geometry.pose import PoseEstimate
from und3rstand_jax.report.page_attention import PackedAttention, pooled_marks
from und3rstand_jax.report.page_geometry import PackedGeometry
from und3rstand_jax.report.page_use import lens_values, use_values

_COLORMAPS = {"depth": "turbo", "confidence": "viridis", "error": "magma", "attention": "inferno", "mass": "viridis", "sink": "cividis"}
_COST_COLORMAPS = {"error": "RdBu_r", "displacement": "magma"}


def page_values(
    analysis: SetAnalysis,
    geometry: PackedGeometry,
    attention: PackedAttention | None,
    use: HeadUse | None = None,
    self_attention: PackedAttention | None = None,
    lens: Mapping[str, tuple[float, ...]] | None = None,
) -> dict[str, object]:
    """Everything the page's scripts read besides the packed arrays and the images, as JSON values.

    Translations of cameras are divided by the same scale as the points beside them.
    """
    # If no focal length is known, only view 1 has a camera: it is drawn with a focal length of one image width.
    unknown = (centred_intrinsics(float(image.shape[1]), (image.shape[0], image.shape[1])) for image in analysis.images)
    intrinsics = analysis.intrinsics or tuple(unknown)
    errors = [error for layer in analysis.layers for error in layer.errors if math.isfinite(error)]
    # 256 colours as hexadecimal digits.
    maps = _COLORMAPS | ({} if use is None else {"cost": _COST_COLORMAPS[use.measure]})
    colors = {name: matplotlib.colormaps[of](np.linspace(0, 1, 256))[:, :3] for name, of in maps.items()}
    truth = analysis.ground_truth
    places = None if truth is None else set_true_places(truth, analysis.grids)
    marked = {name: packed for name, packed in (("attention", attention), ("self_attention", self_attention)) if packed is not None}
    marks = {name: pooled_marks(places, analysis.grids, packed.pool) for name, packed in marked.items()} if places is not None else {}
    return {
        "title": analysis.title,
        "reference": analysis.reference,
        "match_threshold": round(analysis.match_threshold, 6),  # shown as it is
        "shapes": [list(image.shape[:2]) for image in analysis.images],
        "grids": analysis.grids,
        "focal_known": analysis.intrinsics is not None,
        "intrinsics": [camera.tolist() for camera in intrinsics],
        "error_range": max([*errors, 1e-3]),  # the colour scale of point errors ends at the worst layer's mean
        "layers": [_layer(layer, scale) for layer, scale in zip(analysis.layers, geometry.scales, strict=True)],
        "true_poses": [_camera(pose, geometry.truth_scale or 1.0) for pose in analysis.true_poses[1:]] if analysis.true_poses else None,
        "own_poses": None if analysis.own_poses is None else _own_poses(analysis.own_poses, geometry.scales[-1]),
        "geometry": geometry.info,
        "attention": None if attention is None else {**attention.info, "marks": marks.get("attention"), **_named(analysis)},
        "use": None if use is None else _use(use, self_attention, marks.get("self_attention"), geometry),
        "lens": lens_values(lens or {}),
        "colormaps": {name: np.rint(table * 255).astype(np.uint8).tobytes().hex() for name, table in colors.items()},
        "facts": analysis.record,
    }


def _named(analysis: SetAnalysis) -> dict[str, object]:
    """The name of the attention, the stacks of its blocks, and the number of special tokens that it reads in each view."""
    return {"words": words_of(analysis.attention_kind), "stacks": analysis.stacks, "special": analysis.special_tokens}


def _use(use: HeadUse, packed: PackedAttention | None, marks: object, geometry: PackedGeometry) -> dict[str, object]:
    cameras = [_camera(one.camera, scale) for one, scale in zip(use.without, geometry.without_scales, strict=True)]
    return {**use_values(use, cameras), "attention": None if packed is None else {**packed.info, "marks": marks}}


def _layer(layer: Layer, scale: float) -> dict[str, object]:
    found = zip(layer.correspondences, layer.accuracies, strict=True)
    return {
        "id": layer.layer_id,
        "scale": scale,
        "errors": [error if math.isfinite(error) else None for error in layer.errors],
        "accuracy": layer.accuracy,
        "rotation": layer.rotation_degrees,
        "translation": layer.translation_degrees,
        "poses": _poses(layer.poses, scale),
        "matches": [_matches(matches, accuracy) for matches, accuracy in found],
    }


def _own_poses(poses: Sequence[PoseEstimate], scale: float) -> dict[str, object]:
    """In the form of a layer's, which are by PnP on its points."""
    rotation, translation = median_angles(poses)
    return {"rotation": rotation, "translation": translation, "poses": _poses(poses, scale)}


def _poses(poses: Sequence[PoseEstimate], scale: float) -> list[dict[str, object]]:
    return [
        {"camera": _camera(pose.camera, scale), "rotation": pose.rotation_degrees, "translation": pose.translation_degrees}
        for pose in poses
    ]


def _matches(found: Correspondences, accuracy: float | None) -> dict[str, object]:
    """The matches of view 1 with one of the later views."""
    shown = drawn_matches(found)
    matches: dict[str, object] = {
        "count": len(found.pixels1),
        "known": 0,
        "median_offset": None,
        "accuracy": accuracy,
        "pixels1": found.pixels1[shown].tolist(),
        "pixels2": found.pixels2[shown].tolist(),
        "offsets": None,
    }
    if found.offsets is not None:
        known = found.offsets[np.isfinite(found.offsets)].astype(np.float64)
        matches["known"] = len(known)
        matches["median_offset"] = float(np.median(known)) if len(known) else None
        matches["offsets"] = [round(offset, 2) for offset in found.offsets[shown].tolist()]
    return matches


def _camera(camera_to_1: Float[np.ndarray, "4 4"] | None, scale: float) -> list[list[float]] | None:
    if camera_to_1 is None or not np.isfinite(camera_to_1).all():
        return None
    normalised = np.array(camera_to_1, np.float64)
    normalised[:3, 3] /= scale
    return normalised.tolist()
