"""What the page shows besides arrays: layers, errors, poses, matches, facts, as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.pair import Layer, Report
from und3rstand_jax.geometry.cameras import centred_intrinsics
from und3rstand_jax.geometry.matching import Correspondences, drawn_matches
from und3rstand_jax.geometry.pose import PoseEstimate
from und3rstand_jax.report import page_attention, page_geometry
from und3rstand_jax.report.page_attention import PackedAttention
from und3rstand_jax.report.page_geometry import PackedGeometry

_COLORMAPS = {"depth": "turbo", "confidence": "viridis", "error": "magma", "attention": "inferno"}


def page_values(report: Report, geometry: PackedGeometry, attention: PackedAttention | None) -> dict[str, Any]:
    """Everything the page's scripts read besides the packed arrays and the images, as plain JSON values.

    Translations of cameras are divided by the same scale as the points beside them.
    """
    return {
        "title": report.title,
        "reference": report.reference,
        "match_threshold": report.match_threshold,
        "shapes": [list(image.shape[:2]) for image in report.images],
        "grids": report.grids,
        "intrinsics": [camera.tolist() for camera in _intrinsics(report)],
        "error_range": _error_range(report.layers),
        "layers": [_layer(layer, scale) for layer, scale in zip(report.layers, geometry.scales, strict=True)],
        "true_pose": _camera(report.true_pose, geometry.truth_scale or 1.0),
        "geometry": page_geometry.describe(geometry),
        "attention": page_attention.describe(attention),
        "colormaps": {name: _colormap(of) for name, of in _COLORMAPS.items()},
        "facts": report.facts,
    }


def to_json(value: Any) -> str:
    """JSON without NaN and infinities (floats that are not finite become null), and safe inside a <script> of any type."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _layer(layer: Layer, scale: float) -> dict[str, Any]:
    return {
        "id": layer.layer_id,
        "scale": scale,
        "errors": list(layer.errors),
        "accuracy": layer.accuracy,
        "pose": _pose(layer.pose, scale),
        "matches": _matches(layer.correspondences),
    }


def _pose(pose: PoseEstimate, scale: float) -> dict[str, Any]:
    return {"camera": _camera(pose.camera2_to_1, scale), "rotation": pose.rotation_degrees, "translation": pose.translation_degrees}


def _camera(camera_to_1: Float[np.ndarray, "4 4"] | None, scale: float) -> list[list[float]] | None:
    if camera_to_1 is None or not np.isfinite(camera_to_1).all():
        return None
    normalised = np.array(camera_to_1, np.float64)
    normalised[:3, 3] /= scale
    return normalised.tolist()


def _matches(found: Correspondences) -> dict[str, Any]:
    shown = drawn_matches(found)
    offsets = None if found.offsets is None else found.offsets.astype(np.float64)
    known = 0 if offsets is None else int(np.isfinite(offsets).sum())
    return {
        "count": len(found.pixels1),
        "known": known,
        "median_offset": float(np.nanmedian(offsets)) if offsets is not None and known else None,
        "pixels1": found.pixels1[shown].tolist(),
        "pixels2": found.pixels2[shown].tolist(),
        "offsets": None if offsets is None else [round(offset, 2) for offset in offsets[shown].tolist()],
    }


def _intrinsics(report: Report) -> Sequence[Float[np.ndarray, "3 3"]]:
    """What both cameras are drawn with: where nothing tells a focal length, and only view 1 has a camera, one that is a view's width."""
    if report.intrinsics is not None:
        return report.intrinsics
    sizes = [(image.shape[0], image.shape[1]) for image in report.images]
    return [centred_intrinsics(float(width), (height, width)) for height, width in sizes]


def _error_range(layers: tuple[Layer, ...]) -> float:
    """Where the colour scale of point errors ends: at the worst layer's mean."""
    errors = [error for layer in layers for error in layer.errors if math.isfinite(error)]
    return max([*errors, 1e-3])


def _colormap(name: str) -> str:
    """256 colours as hexadecimal digits."""
    colors = matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return np.rint(colors * 255).astype(np.uint8).tobytes().hex()


def _finite(value: Any) -> Any:
    """Unlike `strict_json`: the scripts take what is not finite for unknown, and seven digits are enough for them."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
