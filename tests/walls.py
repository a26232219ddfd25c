"""Cameras before a wall: pairs, and sets of more views, whose matches are known in closed form."""

import numpy as np

from und3rstand_jax.analysis.held_out import pairs_of
from und3rstand_jax.analysis.inputs import GroundTruth
from und3rstand_jax.analysis.pair_measures import Pairs
from und3rstand_jax.data.example import Example
from und3rstand_jax.geometry.cameras import ViewTruth
from und3rstand_jax.geometry.loss import Target

SIZE, PATCH = 64, 16
GRID = (SIZE // PATCH, SIZE // PATCH)
INTRINSICS = np.array([[64.0, 0, 31.5], [0, 64, 31.5], [0, 0, 1]])


def wall(*shifts_pixels: float) -> GroundTruth:
    """All cameras look straight at a wall 2 m away; each later one stands so far to the left that all is that many pixels further right.

    Without a shift there is a second camera in the first one's place.
    """
    poses = np.tile(np.eye(4), (1 + len(shifts_pixels or (0.0,)), 1, 1))
    poses[1:, 0, 3] = -np.array(shifts_pixels or (0.0,)) * 2 / 64
    columns, rows = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    points = np.stack([(columns - 31.5) * 2 / 64, (rows - 31.5) * 2 / 64, np.full((SIZE, SIZE), 2.0)], axis=-1)
    valid = np.ones((SIZE, SIZE), bool)
    views = tuple(ViewTruth(points + pose[:3, 3], valid) for pose in poses)
    return GroundTruth(views, tuple(poses), (INTRINSICS,) * len(poses))


def wall_pairs(*shifts: float) -> Pairs:
    """Pairs of images of noise that are said to show such a wall."""
    return wall_sets(*((shift,) for shift in shifts))


def wall_sets(*shifts: tuple[float, ...]) -> Pairs:
    """The same of sets of views, one for each group of shifts."""
    examples = []
    for number, of_set in enumerate(shifts):
        truth, noise = wall(*of_set), np.random.default_rng(number)
        images = tuple(noise.uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32) for _ in truth.views)
        targets = tuple(
            Target(view.points[None].astype(np.float32), pose[None].astype(np.float32), view.valid[None])
            for view, pose in zip(truth.views, truth.poses, strict=True)
        )
        intrinsics = tuple(camera[None].astype(np.float32) for camera in truth.intrinsics)
        examples.append(Example(images, targets, intrinsics))
    return pairs_of(examples, len(shifts))
