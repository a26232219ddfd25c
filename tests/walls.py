"""Two cameras before a wall: pairs whose matches are known in closed form."""

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


def wall(shift_pixels: float = 0.0) -> GroundTruth:
    """Both cameras look straight at a wall 2 m away; the second stands so far to the left that all is `shift_pixels` further right."""
    pose = np.eye(4)
    pose[0, 3] = -shift_pixels * 2 / 64
    columns, rows = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    points = np.stack([(columns - 31.5) * 2 / 64, (rows - 31.5) * 2 / 64, np.full((SIZE, SIZE), 2.0)], axis=-1)
    valid = np.ones((SIZE, SIZE), bool)
    views = (ViewTruth(points, valid), ViewTruth(points + pose[:3, 3], valid))
    return GroundTruth(views, (np.eye(4), pose), (INTRINSICS, INTRINSICS))


def wall_pairs(*shifts: float) -> Pairs:
    """Pairs of images of noise that are said to show such a wall."""
    examples = []
    for number, shift in enumerate(shifts):
        truth, noise = wall(shift), np.random.default_rng(number)
        images = tuple(noise.uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32) for _ in range(2))
        camera1, camera2 = (pose[None].astype(np.float32) for pose in (np.eye(4), truth.pose))
        targets = [Target(view.points[None].astype(np.float32), camera1, view.valid[None]) for view in truth.views]
        intrinsics = tuple(camera[None].astype(np.float32) for camera in truth.intrinsics)
        examples.append(Example(images, (targets[0], targets[1]._replace(cam2world=camera2)), intrinsics))
    return pairs_of(examples, len(shifts))
