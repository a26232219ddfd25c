"""Every layer's points and confidences on the page: normalised, on a coarser pixel grid if they would take too much space, quantised."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8

from und3rstand_jax.analysis.head_use import WithoutHead
from und3rstand_jax.analysis.view_set import Layer, SetAnalysis
from und3rstand_jax.report.page_arrays import PackedArray, pack, packed_size

STEPS_PER_UNIT = 1024
"""Quantisation of points; the unit is the layer's mean distance to the origin. At that distance, neighbouring pixels of a 128-pixel image
are 10 steps apart."""

NO_POINT = -32768
"""Stored in all three coordinates of a point that is not finite or not known."""

_FARTHEST = 31.9
_STRIDES = (1, 2, 3, 4, 5, 6, 8, 12, 16)
_EXPECTED_COMPRESSION = 3.0
_BYTES_PER_POINT = 6


@dataclasses.dataclass(frozen=True)
class PackedGeometry:
    """Points and confidences of all layers, ready for the page.

    Attributes:
        arrays: for every view v `points<v>` (layers, then heads left out, 3, h, w); `confidence<v>` (layers, h, w) if any layer has a
            confidence; `truth<v>` (3, h, w) with ground truth.
        stride: image pixels per pixel of the arrays, in both directions.
        scales: divisors of each layer's points: their mean distance to the origin, in the layer's unit.
        without_scales: the same for the runs with one head left out.
        truth_scale: the same for the ground truth, in the data's unit.
        depth_range: 1st to 99th percentile of the reference's z, normalised.
        log_confidence_range: logarithms of the confidences stored as 0 and 255; None without confidences.
    """

    arrays: tuple[PackedArray, ...]
    stride: int
    scales: tuple[float, ...]
    without_scales: tuple[float, ...]
    truth_scale: float | None
    depth_range: tuple[float, float]
    log_confidence_range: tuple[float, float] | None

    @property
    def info(self) -> dict[str, object]:
        """What the page's scripts need besides the arrays, as JSON values."""
        constants = {"steps_per_unit": STEPS_PER_UNIT, "no_point": NO_POINT}
        return constants | {name: getattr(self, name) for name in ("stride", "depth_range", "log_confidence_range")}


def pack_geometry(analysis: SetAnalysis, budget: int, without: Sequence[WithoutHead] = ()) -> PackedGeometry:
    """Packs on the finest pixel grid that takes at most `budget` characters. The coarsest, stride 16, is accepted at any size.

    Args:
        analysis: the analysis whose layers to pack.
        budget: characters on the page.
        without: what to pack after the layers: the pair's points without single attention heads. With ground truth, each has its own
            scale, as errors do. Otherwise, all have the last layer's scale: if all points move, they are shown to have moved.
    """
    valid = None if analysis.truth is None else tuple(view.valid & np.isfinite(view.points).all(-1) for view in analysis.truth)
    scales = tuple(mean_distance([view.points for view in layer.views], valid) for layer in analysis.layers)
    own = (scales[-1] if valid is None else mean_distance([view.points for view in one.views], valid) for one in without)
    without_scales = tuple(own)
    truth_scale = None if analysis.truth is None else mean_distance([view.points for view in analysis.truth], valid)
    confidence = _log_confidence_range(analysis.layers)
    for stride in _STRIDES:
        pixels = sum(int(np.prod(subsample(view.points, stride).shape[:2])) for view in analysis.layers[0].views)
        expected = pixels * (len(analysis.layers) + len(without)) * _BYTES_PER_POINT / _EXPECTED_COMPRESSION
        if stride != _STRIDES[-1] and expected > budget:
            continue
        arrays = _pack_arrays(analysis, without, stride, scales + without_scales, truth_scale, confidence)
        if packed_size(arrays) <= budget:
            break
    return PackedGeometry(arrays, stride, scales, without_scales, truth_scale, _depth_range(analysis, scales, truth_scale), confidence)


def mean_distance(points: Sequence[Float[np.ndarray, "_ _ 3"]], valid: Sequence[Bool[np.ndarray, "_ _"]] | None = None) -> float:
    """Mean distance to the origin over the finite points of all views (only those that are `valid`, if given); 1 if there are none."""
    masks = [True] * len(points) if valid is None else valid
    distances = [np.linalg.norm(view[np.isfinite(view).all(-1) & mask], axis=-1) for view, mask in zip(points, masks, strict=True)]
    together = np.concatenate(distances)
    mean = float(together.mean(dtype=np.float64)) if together.size else 0.0
    return mean if mean > 0 and np.isfinite(mean) else 1.0


def _log_confidence_range(layers: Iterable[Layer]) -> tuple[float, float] | None:
    maps = [view.confidence for layer in layers for view in layer.views if view.confidence is not None]
    usable = [values[np.isfinite(values) & (values > 0)] for values in maps]
    usable = [values for values in usable if values.size]
    if not usable:
        return None
    low, high = (float(np.log(bound)) for bound in (min(v.min() for v in usable), max(v.max() for v in usable)))
    return low, max(high, low + 1e-3)


def _depth_range(analysis: SetAnalysis, scales: tuple[float, ...], truth_scale: float | None) -> tuple[float, float]:
    """Taken from the ground truth, or else the last layer: outliers of a bad layer must not compress the colour scale of all."""
    if analysis.truth is not None and truth_scale is not None:
        depths: list[np.ndarray] = [view.points[view.valid][:, 2] / truth_scale for view in analysis.truth]
    else:
        depths = [view.points[..., 2].ravel() / scales[-1] for view in analysis.layers[-1].views]
    together = np.concatenate(depths)
    together = together[np.isfinite(together)]
    if not together.size:
        return 0.0, 2.0
    low, high = (float(bound) for bound in np.percentile(together, (1, 99)))
    return low, max(high, low + 1e-3)


def _pack_arrays(
    analysis: SetAnalysis,
    without: Sequence[WithoutHead],
    stride: int,
    scales: tuple[float, ...],
    truth_scale: float | None,
    confidence: tuple[float, float] | None,
) -> tuple[PackedArray, ...]:
    packed = []
    for view in range(len(analysis.images)):
        views = [layer.views[view] for layer in analysis.layers]
        everything = [*views, *(one.views[view] for one in without)]
        points = [quantise_points(subsample(seen.points, stride), scale) for seen, scale in zip(everything, scales, strict=True)]
        packed.append(pack(f"points{view + 1}", np.stack(points), differences=True))
        if confidence is not None:
            # A layer without confidence, among layers with one, is shown as the least confident.
            given = (np.zeros(seen.points.shape[:2]) if seen.confidence is None else seen.confidence for seen in views)
            maps = [quantise_confidence(subsample(values, stride), confidence) for values in given]
            packed.append(pack(f"confidence{view + 1}", np.stack(maps), differences=True))
        if analysis.truth is not None and truth_scale is not None:
            truth = np.where(analysis.truth[view].valid[..., None], analysis.truth[view].points, np.nan)
            packed.append(pack(f"truth{view + 1}", quantise_points(subsample(truth, stride), truth_scale), differences=True))
    return tuple(packed)


def subsample(maps: np.ndarray, stride: int) -> np.ndarray:
    """Every `stride`-th pixel of a map (H, W, ...), starting in the middle of the first cell."""
    return maps[stride // 2 :: stride, stride // 2 :: stride]


def quantise_points(points: Float[np.ndarray, "h w 3"], scale: float) -> Int16[np.ndarray, "3 h w"]:
    """Points divided by `scale`, in steps. Points farther than 31.9 are moved in along their ray; non-finite ones become NO_POINT."""
    finite = np.isfinite(points).all(-1, keepdims=True)
    normalised = np.where(finite, points, 0).astype(np.float64) / scale
    distance = np.linalg.norm(normalised, axis=-1, keepdims=True)
    inside = normalised * (_FARTHEST / np.maximum(distance, _FARTHEST))
    return np.moveaxis(np.where(finite, np.rint(inside * STEPS_PER_UNIT), NO_POINT), -1, 0).astype(np.int16)


def quantise_confidence(confidence: Float[np.ndarray, "*shape"], log_range: tuple[float, float]) -> UInt8[np.ndarray, "*shape"]:
    """Confidence on a logarithmic scale, 0 to 255 over `log_range`; 0 for values that are not finite or not positive."""
    low, high = log_range
    positive = np.isfinite(confidence) & (confidence > 0)
    share = (np.log(np.where(positive, confidence, 1.0)) - low) / (high - low)
    return np.where(positive, np.rint(255 * np.clip(share, 0, 1)), 0).astype(np.uint8)
