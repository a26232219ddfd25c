"""Every layer's points and confidences on the page: normalised, on a coarser pixel grid where need be, quantised."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8

from und3rstand_jax.analysis.pair import Layer, Report
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.report.page_attention import PackedArray, pack, size

STEPS_PER_UNIT = 1024
"""Quantisation of points; the unit is the layer's mean distance to the origin. Neighbours in a 128-pixel image lie 10 steps apart there."""


NO_POINT = -32768
"""Stands for all three coordinates where a point is not finite or not known."""


_FARTHEST = 31.9


_STRIDES = (1, 2, 3, 4, 5, 6, 8, 12, 16)


_EXPECTED_COMPRESSION = 3.0


@dataclasses.dataclass(frozen=True)
class PackedGeometry:
    """Points and confidences of all layers, ready for the page.

    Attributes:
        arrays: `points1`, `points2` (layers, 3, h, w); `confidence1`, `confidence2` (layers, h, w) where probes give it; `truth1`,
            `truth2` (3, h, w) where there is a truth.
        stride: pixels of the image for each pixel of the arrays, in both directions.
        scales: mean distance to the origin of each layer, in its own unit: what its points were divided by.
        truth_scale: the same of the truth, in the data's unit.
        depth_range: 1st to 99th percentile of the reference's z, normalised.
        log_confidence_range: what 0 and 255 stand for; None where there is no confidence.
    """

    arrays: tuple[PackedArray, ...]
    stride: int
    scales: tuple[float, ...]
    truth_scale: float | None
    depth_range: tuple[float, float]
    log_confidence_range: tuple[float, float] | None


def pack_geometry(report: Report, budget: int) -> PackedGeometry:
    """Packs on the finest pixel grid that takes at most `budget` characters; the coarsest, stride 16, is taken in any case."""
    valid = None if report.truth is None else tuple(view.valid & np.isfinite(view.points).all(-1) for view in report.truth)
    scales = tuple(mean_distance([view.points for view in layer.views], valid) for layer in report.layers)
    truth_scale = None if report.truth is None else mean_distance([view.points for view in report.truth], valid)
    confidence = _log_confidence_range(report.layers)
    arrays: tuple[PackedArray, ...] = ()
    stride = _STRIDES[-1]
    for stride in _STRIDES:
        if stride != _STRIDES[-1] and _raw_size(report, stride) / _EXPECTED_COMPRESSION > budget:
            continue
        arrays = _pack_at(report, stride, scales, truth_scale, confidence)
        if size(arrays) <= budget:
            break
    return PackedGeometry(arrays, stride, scales, truth_scale, _depth_range(report, scales, truth_scale), confidence)


def mean_distance(points: Sequence[Float[np.ndarray, "H W 3"]], valid: Sequence[Bool[np.ndarray, "H W"]] | None = None) -> float:
    """Mean distance to the origin over the finite points of all views (those that are `valid`, if given); 1 where there are none."""
    masks = [True] * len(points) if valid is None else valid
    distances = [np.linalg.norm(view[np.isfinite(view).all(-1) & mask], axis=-1) for view, mask in zip(points, masks, strict=True)]
    together = np.concatenate(distances)
    mean = float(together.mean(dtype=np.float64)) if together.size else 0.0
    return mean if mean > 0 and np.isfinite(mean) else 1.0


def subsample(maps: np.ndarray, stride: int) -> np.ndarray:
    """Every `stride`-th pixel of a map (H, W, ...), from the middle of the first cell on."""
    return maps[stride // 2 :: stride, stride // 2 :: stride]


def quantise_points(points: Float[np.ndarray, "h w 3"], scale: float) -> Int16[np.ndarray, "3 h w"]:
    """Points over `scale`, in steps; those farther out than 31.9 are drawn in along their ray, non-finite ones become NO_POINT."""
    finite = np.isfinite(points).all(-1, keepdims=True)
    normalised = np.where(finite, points, 0).astype(np.float64) / scale
    distance = np.linalg.norm(normalised, axis=-1, keepdims=True)
    inside = normalised * (_FARTHEST / np.maximum(distance, _FARTHEST))
    return np.moveaxis(np.where(finite, np.rint(inside * STEPS_PER_UNIT), NO_POINT), -1, 0).astype(np.int16)


def quantise_confidence(confidence: Float[np.ndarray, "*shape"], log_range: tuple[float, float]) -> UInt8[np.ndarray, "*shape"]:
    """Confidence on a logarithmic scale, 0 to 255 over `log_range`; what is not finite or not positive becomes 0."""
    low, high = log_range
    positive = np.isfinite(confidence) & (confidence > 0)
    share = (np.log(np.where(positive, confidence, 1.0)) - low) / (high - low)
    return np.where(positive, np.rint(255 * np.clip(share, 0, 1)), 0).astype(np.uint8)


def _pack_at(
    report: Report, stride: int, scales: tuple[float, ...], truth_scale: float | None, confidence: tuple[float, float] | None
) -> tuple[PackedArray, ...]:
    packed = []
    for view in (0, 1):
        views = [layer.views[view] for layer in report.layers]
        points = [quantise_points(subsample(seen.points, stride), scale) for seen, scale in zip(views, scales, strict=True)]
        packed.append(pack(f"points{view + 1}", np.stack(points), differences=True))
        if confidence is not None:
            maps = np.stack([quantise_confidence(subsample(_confidence(seen), stride), confidence) for seen in views])
            packed.append(pack(f"confidence{view + 1}", maps, differences=True))
        if report.truth is not None and truth_scale is not None:
            truth = np.where(report.truth[view].valid[..., None], report.truth[view].points, np.nan)
            packed.append(pack(f"truth{view + 1}", quantise_points(subsample(truth, stride), truth_scale), differences=True))
    return tuple(packed)


def _raw_size(report: Report, stride: int) -> int:
    pixels = sum(subsample(view.points, stride).shape[0] * subsample(view.points, stride).shape[1] for view in report.layers[0].views)
    return pixels * len(report.layers) * 6


def _confidence(view: ViewGeometry) -> Float[np.ndarray, "H W"]:
    # One layer without among layers with: shown as the least confident.
    return np.zeros(view.points.shape[:2], np.float32) if view.confidence is None else view.confidence


def _log_confidence_range(layers: Iterable[Layer]) -> tuple[float, float] | None:
    maps = [view.confidence for layer in layers for view in layer.views if view.confidence is not None]
    usable = [values[np.isfinite(values) & (values > 0)] for values in maps]
    usable = [values for values in usable if values.size]
    if not usable:
        return None
    low, high = (float(np.log(bound)) for bound in (min(v.min() for v in usable), max(v.max() for v in usable)))
    return low, max(high, low + 1e-3)


def _depth_range(report: Report, scales: tuple[float, ...], truth_scale: float | None) -> tuple[float, float]:
    """Of the truth, or of the last layer where there is none: a layer's garbage must not squeeze the others' colours."""
    if report.truth is not None and truth_scale is not None:
        depths: list[np.ndarray] = [view.points[view.valid][:, 2] / truth_scale for view in report.truth]
    else:
        depths = [view.points[..., 2].ravel() / scales[-1] for view in report.layers[-1].views]
    together = np.concatenate(depths)
    together = together[np.isfinite(together)]
    if not together.size:
        return 0.0, 2.0
    low, high = (float(bound) for bound in np.percentile(together, (1, 99)))
    return low, max(high, low + 1e-3)


def describe(geometry: PackedGeometry) -> dict[str, Any]:
    """What the page needs besides the arrays, as plain JSON values."""
    return {
        "stride": geometry.stride,
        "steps_per_unit": STEPS_PER_UNIT,
        "no_point": NO_POINT,
        "depth_range": geometry.depth_range,
        "log_confidence_range": geometry.log_confidence_range,
    }
