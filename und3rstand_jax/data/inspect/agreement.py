"""How well the geometry of two views agrees: points of one, seen from the other, against the depth there. NumPy, on thinned views."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from und3rstand_jax.data.records import Pair, Shape, View

TOLERANCE = 0.05
"""Depths agree that differ by less than this share of the one found."""


_GRID = 256


_POINTS = 40


class ThinView(NamedTuple):
    """Geometry of a view whose depth is known at every `stride`th pixel of every `stride`th row.

    `shape` (H, W) and `intrinsics` are of the full photo; `depth` (0 where unknown) is in the unit of `cam2world`.
    """

    depth: Float[np.ndarray, "h w"]
    stride: int
    shape: Shape
    intrinsics: Float[np.ndarray, "3 3"]
    cam2world: Float[np.ndarray, "4 4"]


ThinPair = tuple[ThinView, ThinView]


class Agreement(NamedTuple):
    """What became of the points of one view seen from the other; sums over pairs add up.

    Of `points` with a known depth, `compared` land in the other photo, in front of its camera, where it knows a depth; of
    these `agreeing` differ from it by less than TOLERANCE. `closeness` sums 1 for no difference down to 0 at TOLERANCE.
    """

    points: int
    compared: int
    agreeing: int
    closeness: float

    @property
    def share(self) -> float:
        """Of the points that can be compared, the share that agrees; 0 where there are none."""
        return self.agreeing / max(self.compared, 1)

    @property
    def difference(self) -> float:
        """Of the points that can be compared, the mean relative difference of depth, a greater one counted as TOLERANCE."""
        return TOLERANCE * (1 - self.closeness / max(self.compared, 1))

    @property
    def overlap(self) -> float:
        """Of all points, the share that the other view sees, at an agreeing depth."""
        return self.agreeing / max(self.points, 1)


def thin_pair(pair: Pair) -> ThinPair:
    """The geometry of both views at up to 256 pixels a side."""
    return _thin(pair.view1), _thin(pair.view2)


def agreement(pair: ThinPair) -> Agreement:
    """How the points of view 1, on a grid of up to 40 a side, agree with view 2."""
    source, target = pair
    points = _points(source)
    seen = (points - target.cam2world[:3, 3]) @ target.cam2world[:3, :3]
    seen = seen[seen[:, 2] > 0]
    (fx, _, cx), (_, fy, cy) = target.intrinsics[:2]
    columns, rows = (seen[:, 0] * (fx / seen[:, 2]) + cx, seen[:, 1] * (fy / seen[:, 2]) + cy)
    height, width = target.shape
    inside = (columns > -0.5) & (columns < width - 0.5) & (rows > -0.5) & (rows < height - 0.5)
    expected = seen[inside, 2]
    found = target.depth[_index(rows[inside], target, 0), _index(columns[inside], target, 1)]
    difference = np.abs(expected[found > 0] / found[found > 0] - 1)
    closeness = np.clip(1 - difference / TOLERANCE, 0, None)
    return Agreement(len(points), len(difference), int((difference < TOLERANCE).sum()), float(closeness.sum()))


def total(agreements: Iterable[Agreement]) -> Agreement:
    """The sums."""
    return Agreement(*(sum(column) for column in zip(Agreement(0, 0, 0, 0.0), *agreements, strict=True)))


def both_ways(pairs: Iterable[ThinPair]) -> Agreement:
    """The agreement of all pairs together, of view 1 with view 2 and of view 2 with view 1."""
    return total(agreement(order) for pair in pairs for order in (pair, pair[::-1]))


def baseline_over_depth(pair: ThinPair) -> float:
    """Distance of the two cameras over the median depth of both views; 0 where no depth is known."""
    depth = np.concatenate([view.depth[view.depth > 0] for view in pair])
    distance = np.linalg.norm(pair[0].cam2world[:3, 3] - pair[1].cam2world[:3, 3])
    return float(distance / np.median(depth)) if len(depth) else 0.0


def ray_grid(view: ThinView, step: int = 1) -> Float[np.ndarray, "h w 3"]:
    """Of every `step`th entry of a thin view's depth, the point at z = 1 in the camera's frame."""
    (fx, _, cx), (_, fy, cy) = view.intrinsics[:2]
    rows, columns = (np.arange(0, count, step) * view.stride for count in view.depth.shape)
    x, y = np.meshgrid((columns - cx) / fx, (rows - cy) / fy)
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def _points(view: ThinView) -> Float[np.ndarray, "points 3"]:
    """World points of a thin view, on a coarser grid still."""
    step = -(-max(view.depth.shape) // _POINTS)
    depth = view.depth[::step, ::step]
    known = depth > 0
    in_camera = ray_grid(view, step)[known] * depth[known][:, None]
    return in_camera @ view.cam2world[:3, :3].T + view.cam2world[:3, 3]


def _index(positions: np.ndarray, view: ThinView, axis: int) -> np.ndarray:
    return np.minimum(np.rint(positions / view.stride).astype(np.intp), view.depth.shape[axis] - 1)


def _thin(view: View) -> ThinView:
    stride = -(-max(view.depth.shape) // _GRID)
    height, width = view.depth.shape
    depth = view.depth[::stride, ::stride].astype(np.float64)
    return ThinView(depth, stride, (height, width), np.asarray(view.intrinsics, np.float64), np.asarray(view.cam2world, np.float64))
