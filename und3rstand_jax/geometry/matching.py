"""Pixels of two views that a layer takes for the same point (DUSt3R, Wang et al., CVPR 2024, section 3.3), and whether they are."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth, sampled_pixels


@dataclasses.dataclass(frozen=True)
class Correspondences:
    """Pixels of both views that a layer takes for the same point: mutual nearest neighbours of its points.

    `pixels1`, `pixels2`: (x, y) of each pair. `offsets`: distance in pixels of view 2 between the matched and the true place, NaN
    where the truth does not see the point in view 2; None without ground truth.
    """

    pixels1: Int[np.ndarray, "K 2"]
    pixels2: Int[np.ndarray, "K 2"]
    offsets: Float[np.ndarray, " K"] | None


THRESHOLD = 0.03
"""Share of the width of view 2 within which a match counts as right."""


MOST_DRAWN = 60
"""Matches of a layer that pictures show."""


_SAME_DEPTH = 0.02  # relative; what view 2 sees there farther off than this is another surface


def mutual_matches(
    points1: Float[np.ndarray, "H1 W1 3"], points2: Float[np.ndarray, "H2 W2 3"]
) -> tuple[Int[np.ndarray, "K 2"], Int[np.ndarray, "K 2"]]:
    """Pairs of pixels, (x, y) in each view, whose points are each other's nearest among all points of the other view.

    Of view 1, the pixels of a grid are asked (at most 64×64), of view 2 all: the grid thins matches out and leaves them as exact as
    they are. Points that are not finite match nothing.
    """
    flat1, flat2 = (points.reshape(-1, 3).astype(np.float64) for points in (points1, points2))
    finite1, finite2 = (np.flatnonzero(np.isfinite(flat).all(axis=-1)) for flat in (flat1, flat2))
    width1, width2 = points1.shape[1], points2.shape[1]
    columns, rows = sampled_pixels(*points1.shape[:2]).astype(int).T
    asked = np.intersect1d(rows * width1 + columns, finite1)
    if not (len(asked) and len(finite2)):
        return np.empty((0, 2), int), np.empty((0, 2), int)
    there = finite2[_nearest(flat2[finite2], flat1[asked])]
    back = finite1[_nearest(flat1[finite1], flat2[there])]
    mutual = back == asked
    return _pixels(asked[mutual], width1), _pixels(there[mutual], width2)


def correspondences(views: tuple[ViewGeometry, ViewGeometry], true_places: Float[np.ndarray, "H1 W1 2"] | None = None) -> Correspondences:
    """A layer's mutual matches and, where `true_places` tells where view 1's pixels are in view 2, how many pixels they are off."""
    pixels1, pixels2 = mutual_matches(views[0].points, views[1].points)
    if true_places is None:
        return Correspondences(pixels1, pixels2, None)
    columns, rows = pixels1.T
    return Correspondences(pixels1, pixels2, np.linalg.norm(pixels2 - true_places[rows, columns], axis=-1))


def true_places(
    truth: tuple[ViewTruth, ViewTruth], true_pose: Float[np.ndarray, "4 4"], intrinsics2: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "H1 W1 2"]:
    """Where in view 2, (x, y), each pixel of view 1 is: its true point seen by view 2's camera.

    NaN where the point is not known or view 2 does not see it: it lies outside the image or behind the camera, or the depth that view 2
    has at the nearest pixel differs by more than 2 %.

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
    """Share of the matches with a known true place that lie within `threshold` pixels of it; None where there are none."""
    if matches.offsets is None:
        return None
    known = matches.offsets[~np.isnan(matches.offsets)]
    return float((known <= threshold).mean()) if known.size else None


def drawn_matches(matches: Correspondences) -> Int[np.ndarray, " D"]:
    """Indices of the at most `MOST_DRAWN` matches that are drawn: drawn by lot, the same at every call.

    Matches come row by row of view 1's grid: every tenth, say, would make a pattern of columns.
    """
    return np.random.default_rng(0).permutation(len(matches.pixels1))[:MOST_DRAWN]


def _nearest(points: Float[np.ndarray, "N 3"], asked: Float[np.ndarray, "M 3"]) -> Int[np.ndarray, " M"]:
    # Splitting at the middle of the space rather than of the points: half the time, and these points are spread well enough.
    tree = KDTree(points, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(asked)[1])


def _pixels(indices: Int[np.ndarray, " K"], width: int) -> Int[np.ndarray, "K 2"]:
    return np.stack([indices % width, indices // width], axis=-1)


def _into(pose: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """Points of the frame that `pose` leads to, in the frame that it comes from."""
    return (points.astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
