"""Correspondences between two views: pixels whose predicted points match, and how far they are from the true correspondence.

Matches are mutual nearest neighbours in 3D (DUSt3R, Wang et al., CVPR 2024, section 3.3).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth, sampled_pixels

THRESHOLD = 0.03
"""A match is correct within this share of the width of the view it leads to: view 2, or the widest of the views after the first."""

MOST_DRAWN = 60
"""Figures show at most this many matches of a layer."""

_SAME_DEPTH = 0.02  # relative; if the depths differ by more, view 2 sees another surface there


@dataclasses.dataclass(frozen=True)
class Correspondences:
    """Pixels of both views that match: in a layer's pointmaps, mutual nearest neighbours of its points.

    `pixels1`, `pixels2`: (x, y) of each pair. `offsets`: distance in pixels of view 2 between the matched and the true place, NaN
    where view 2 does not see the point according to ground truth; None without ground truth.
    """

    pixels1: Int[np.ndarray, "K 2"]
    pixels2: Int[np.ndarray, "K 2"]
    offsets: Float[np.ndarray, " K"] | None


def mutual_matches(
    points1: Float[np.ndarray, "H1 W1 3"], points2: Float[np.ndarray, "H2 W2 3"]
) -> tuple[Int[np.ndarray, "K 2"], Int[np.ndarray, "K 2"]]:
    """Pairs of pixels, (x, y) in each view, whose points are each other's nearest among all points of the other view.

    View 1's pixels are those of a grid (at most 64×64), view 2's are all pixels: the grid makes matches fewer, not less accurate. Points
    that are not finite match nothing.
    """
    flat1, flat2 = (points.reshape(-1, 3).astype(np.float64) for points in (points1, points2))
    finite1, finite2 = (np.flatnonzero(np.isfinite(flat).all(axis=-1)) for flat in (flat1, flat2))
    width1, width2 = points1.shape[1], points2.shape[1]
    columns, rows = sampled_pixels(*points1.shape[:2]).astype(int).T
    queries = np.intersect1d(rows * width1 + columns, finite1)
    if not (len(queries) and len(finite2)):
        return np.empty((0, 2), int), np.empty((0, 2), int)
    there = finite2[_nearest(flat2[finite2], flat1[queries])]
    back = finite1[_nearest(flat1[finite1], flat2[there])]
    mutual = back == queries
    rows1, columns1 = np.divmod(queries[mutual], width1)
    rows2, columns2 = np.divmod(there[mutual], width2)
    return np.stack([columns1, rows1], axis=-1), np.stack([columns2, rows2], axis=-1)


def correspondences(views: tuple[ViewGeometry, ...], true_places: Float[np.ndarray, "H1 W1 2"] | None = None) -> Correspondences:
    """A layer's mutual matches and, given where view 1's pixels are in view 2 (`true_places`), how many pixels they are off."""
    return matched(*mutual_matches(views[0].points, views[1].points), true_places)


def matched(
    pixels1: Int[np.ndarray, "K 2"], pixels2: Int[np.ndarray, "K 2"], true_places: Float[np.ndarray, "H1 W1 2"] | None = None
) -> Correspondences:
    """Matches, however they were found, and their distance in pixels from where view 1's pixels are in view 2."""
    if true_places is None:
        return Correspondences(pixels1, pixels2, None)
    columns, rows = pixels1.T
    return Correspondences(pixels1, pixels2, np.linalg.norm(pixels2 - true_places[rows, columns], axis=-1))


def true_places(
    truth: tuple[ViewTruth, ...], true_pose: Float[np.ndarray, "4 4"], intrinsics2: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "H1 W1 2"]:
    """The place (x, y) in view 2 of each pixel of view 1: its true point projected into view 2's camera.

    NaN where the point is not known or view 2 does not see it: it is outside the image or behind the camera, or view 2's depth at the
    nearest pixel differs by more than 2 %.

    Args:
        truth: both views' points in view 1's frame.
        true_pose: camera 2 to view 1's frame.
        intrinsics2: of view 2's camera, pixel centres at integers.
    """
    height, width = truth[1].valid.shape
    seen = truth[0].valid.copy()
    in_camera2 = _into(true_pose, truth[0].points)
    depth = in_camera2[..., 2]
    seen &= depth > 0
    projected = in_camera2 @ intrinsics2.T
    places = projected[..., :2] / np.where(seen, depth, 1)[..., None]
    nearest = np.rint(np.where(seen[..., None], places, 0)).astype(int)
    seen &= ((nearest >= 0) & (nearest < (width, height))).all(axis=-1)
    columns, rows = np.moveaxis(np.where(seen[..., None], nearest, 0), -1, 0)
    surface = _into(true_pose, truth[1].points)[..., 2][rows, columns]
    seen &= truth[1].valid[rows, columns] & (np.abs(surface - depth) <= _SAME_DEPTH * depth)
    return np.where(seen[..., None], places, np.nan)


def match_accuracy(matches: Correspondences, threshold: float) -> float | None:
    """Share of the matches with a known true place that are within `threshold` pixels of it; None if there are none."""
    return overall_accuracy((matches,), threshold)


def overall_accuracy(matches: Sequence[Correspondences], threshold: float) -> float | None:
    """`match_accuracy` of the matches of several pairs of views together."""
    offsets = [found.offsets[~np.isnan(found.offsets)] for found in matches if found.offsets is not None]
    known = np.concatenate(offsets) if offsets else np.empty(0)
    return float((known <= threshold).mean()) if known.size else None


def drawn_matches(matches: Correspondences) -> Int[np.ndarray, " D"]:
    """Indices of the matches that figures show, at most `MOST_DRAWN`: a random sample, the same in every call.

    Matches are ordered by the rows of view 1's grid: taking every tenth, say, would make a pattern of columns.
    """
    return np.random.default_rng(0).permutation(len(matches.pixels1))[:MOST_DRAWN]


def _nearest(points: Float[np.ndarray, "N 3"], queries: Float[np.ndarray, "M 3"]) -> Int[np.ndarray, " M"]:
    """Index of the point nearest to each query."""
    # Splitting space at its middle rather than at the points' median takes half the time, and these points are spread well enough.
    tree = KDTree(points, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(queries)[1])


def _into(pose: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """Points of the frame to which `pose` maps, in the frame from which it maps: the inverse of the pose."""
    return (points.astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
