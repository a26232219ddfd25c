"""How well the geometry of two views agrees: points of one view are reprojected into the other and compared with its depth.

In NumPy, on subsampled views: a whole sample of pairs is compared again for each mistake that is tried.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from und3rstand_jax.data.records import Shape, View, ViewSet

TOLERANCE = 0.05
"""Relative difference below which depths agree."""

_DEPTH_SIDE = 256
"""Subsampled depth has at most this many pixels per side."""

_POINTS_SIDE = 40
"""At most this many points per side are reprojected."""


class ThinView(NamedTuple):
    """Geometry of a view with depth at every `stride`-th pixel of every `stride`-th row.

    `shape` (H, W) and `intrinsics` are the full photo's; `depth` (0 where unknown) is in the unit of `cam2world`.
    """

    depth: Float[np.ndarray, "h w"]
    stride: int
    shape: Shape
    intrinsics: Float[np.ndarray, "3 3"]
    cam2world: Float[np.ndarray, "4 4"]

    @classmethod
    def of(cls, view: View) -> "ThinView":
        """A view's geometry, subsampled to at most 256 pixels a side."""
        height, width = view.depth.shape
        stride = -(-max(height, width) // _DEPTH_SIDE)
        depth = view.depth[::stride, ::stride].astype(np.float64)
        return cls(depth, stride, (height, width), np.asarray(view.intrinsics, np.float64), np.asarray(view.cam2world, np.float64))


ThinPair: TypeAlias = tuple[ThinView, ThinView]


class Agreement(NamedTuple):
    """How one view's points agree with the other view's depth, as sums that can be added over pairs.

    Of `points` with known depth, `compared` fall inside the other photo, in front of its camera, where its depth is known. Of these,
    `agreeing` differ from that depth by less than TOLERANCE. `closeness` is a sum over the compared points: 1 for no difference, falling
    to 0 at TOLERANCE.
    """

    points: int
    compared: int
    agreeing: int
    closeness: float

    @property
    def share(self) -> float:
        """Fraction of the compared points that agree; 0 if there are none."""
        return self.agreeing / max(self.compared, 1)

    @property
    def difference(self) -> float:
        """Mean relative depth difference of the compared points, each clipped to TOLERANCE."""
        return TOLERANCE * (1 - self.closeness / max(self.compared, 1))

    @property
    def overlap(self) -> float:
        """Fraction of all points that the other view sees, at an agreeing depth."""
        return self.agreeing / max(self.points, 1)

    @property
    def score(self) -> float:
        """Mean closeness of the compared points, from 0 to 1, lowered where hardly anything can be compared.

        It is finer than `share`: in neighbouring video frames, many points agree by chance.
        """
        return self.closeness / (self.compared + 0.01 * self.points + 1)


def thin_pairs(views: ViewSet) -> list[ThinPair]:
    """The subsampled geometry of a set: each view after the first, preceded by the earlier one that overlaps it most.

    If several overlap it equally, or none does, the first of them is taken.
    """
    thin = [ThinView.of(view) for view in views]
    pairs = [(thin[0], thin[1])]
    for number in range(2, len(thin)):
        pairs.append(max(((earlier, thin[number]) for earlier in thin[:number]), key=lambda pair: agreement(pair).overlap))
    return pairs


def agreement(pair: ThinPair) -> Agreement:
    """How the points of view 1, on a grid of at most 40 per side, agree with view 2."""
    source, target = pair
    step = -(-max(source.depth.shape) // _POINTS_SIDE)
    depth = source.depth[::step, ::step]
    known = depth > 0
    points = (ray_grid(source, step)[known] * depth[known][:, None]) @ source.cam2world[:3, :3].T + source.cam2world[:3, 3]

    seen = (points - target.cam2world[:3, 3]) @ target.cam2world[:3, :3]
    seen = seen[seen[:, 2] > 0]
    (fx, _, cx), (_, fy, cy) = target.intrinsics[:2]
    columns, rows = (seen[:, 0] * (fx / seen[:, 2]) + cx, seen[:, 1] * (fy / seen[:, 2]) + cy)
    height, width = target.shape
    inside = (columns > -0.5) & (columns < width - 0.5) & (rows > -0.5) & (rows < height - 0.5)
    row, column = (
        np.minimum(np.rint(positions[inside] / target.stride).astype(np.intp), count - 1)
        for positions, count in zip((rows, columns), target.depth.shape, strict=True)
    )
    expected, found = seen[inside, 2], target.depth[row, column]
    difference = np.abs(expected[found > 0] / found[found > 0] - 1)
    closeness = np.clip(1 - difference / TOLERANCE, 0, None)
    return Agreement(len(points), len(difference), int((difference < TOLERANCE).sum()), float(closeness.sum()))


def total(agreements: Iterable[Agreement]) -> Agreement:
    """The sums over all agreements."""
    return Agreement(*(sum(column) for column in zip(Agreement(0, 0, 0, 0.0), *agreements, strict=True)))


def both_ways(pairs: Iterable[ThinPair]) -> Agreement:
    """The agreement of all pairs together, in both directions."""
    return total(agreement(order) for pair in pairs for order in (pair, pair[::-1]))


def baseline_over_depth(pair: ThinPair) -> float:
    """Distance between the two cameras, divided by the median depth of both views; 0 if no depth is known."""
    depth = np.concatenate([view.depth[view.depth > 0] for view in pair])
    distance = np.linalg.norm(pair[0].cam2world[:3, 3] - pair[1].cam2world[:3, 3])
    return float(distance / np.median(depth)) if len(depth) else 0.0


def ray_grid(view: ThinView, step: int = 1) -> Float[np.ndarray, "h w 3"]:
    """The camera-frame point at z = 1 for every `step`-th pixel of the subsampled depth, in both directions."""
    (fx, _, cx), (_, fy, cy) = view.intrinsics[:2]
    rows, columns = (np.arange(0, count, step) * view.stride for count in view.depth.shape)
    x, y = np.meshgrid((columns - cx) / fx, (rows - cy) / fy)
    return np.stack([x, y, np.ones_like(x)], axis=-1)
