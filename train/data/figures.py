"""Figures of pairs: sizes, depths, fields of view, overlap, and how well both views' geometry agrees."""

import dataclasses

import numpy as np

from train.data.diagnosis import Explanation
from train.data.overlap import Agreement, ThinPair, agreement, baseline_over_depth, both_ways
from train.data.records import Pair, Shape, View


@dataclasses.dataclass(frozen=True)
class ViewFigures:
    """Of one view: size in pixels; nearest (1st percentile), median and farthest (99th) depth in the unit of cam2world, NaN where
    none is known; share of the pixels whose depth is known; horizontal field of view in degrees; offset of the principal point from
    the centre as a share of the side (the worse of the two).
    """

    size: tuple[int, int]
    depth: tuple[float, float, float]
    valid: float
    field_of_view: float
    off_centre: float


@dataclasses.dataclass(frozen=True)
class PairFigures:
    """Of one pair: its name, its views, the agreement of view 1's points with view 2 and of both with each other,
    and the distance of the cameras over the median depth.
    """

    name: str
    views: tuple[ViewFigures, ViewFigures]
    forward: Agreement
    both: Agreement
    baseline_over_depth: float


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found in a sample of a source's pairs.

    `unreadable` and `refused` are messages: of pairs whose files are damaged or missing, and of those whose crop to `shape` training
    would skip. `explanations` name the mistakes that would explain a disagreement; empty if there is none or no usual one explains it.
    """

    name: str
    pairs: int
    notes: tuple[str, ...]
    shape: Shape
    figures: tuple[PairFigures, ...]
    unreadable: tuple[str, ...]
    refused: tuple[str, ...]
    agreement: Agreement
    explanations: tuple[Explanation, ...]


def pair_figures(name: str, pair: Pair, thin: ThinPair) -> PairFigures:
    """The figures of a pair and of its thinned geometry."""
    views = (_view_figures(pair.view1), _view_figures(pair.view2))
    return PairFigures(name, views, agreement(thin), both_ways([thin]), baseline_over_depth(thin))


def _view_figures(view: View) -> ViewFigures:
    height, width = view.depth.shape
    known = view.depth[view.depth > 0]
    near, median, far = np.percentile(known, (1, 50, 99)) if known.size else (np.nan,) * 3
    (fx, _, cx), (_, _, cy) = view.intrinsics[:2]
    field_of_view = np.degrees(np.arctan((cx + 0.5) / fx) + np.arctan((width - 0.5 - cx) / fx))
    off_centre = max(abs((cx + 0.5) / width - 0.5), abs((cy + 0.5) / height - 0.5))
    return ViewFigures(
        (width, height), (float(near), float(median), float(far)), known.size / view.depth.size, float(field_of_view), off_centre
    )
