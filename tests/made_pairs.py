"""Pairs of pictures of a wall, made by hand: noise for images, exact points and cameras, in no time."""

import jax.numpy as jnp
import numpy as np

from und3rstand_jax.analysis.held_out import pairs_of
from und3rstand_jax.analysis.pair_measures import Pairs
from und3rstand_jax.data.example import Example
from und3rstand_jax.geometry.loss import Target

SIZE = (32, 48)


def wall_pairs(
    count: int,
    seed: int = 0,
    shifts: tuple[float, float] = (0.2, 0.6),
    view1: np.ndarray | None = None,
    size: tuple[int, int] = SIZE,
) -> Pairs:
    """Both cameras look straight at a wall 2 m away; the second stands to the right by one of evenly spaced shifts, in metres."""
    height, width = size
    focal, random = 40.0, np.random.default_rng(seed)
    images = random.uniform(-1, 1, (2, count, *size, 3)).astype(np.float32)
    columns, rows = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    on_wall = np.stack([2 * columns / focal, 2 * rows / focal, np.full(size, 2.0)], axis=-1)
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], np.float32)
    targets = []
    for shift in (np.zeros(count), np.linspace(*shifts, count)):
        cameras = np.tile(np.eye(4), (count, 1, 1))
        cameras[:, 0, 3] = shift
        points = on_wall + cameras[:, None, None, :3, 3]
        targets.append(Target(jnp.asarray(points, jnp.float32), jnp.asarray(cameras, jnp.float32), jnp.ones((count, *size), bool)))
    lenses = jnp.tile(jnp.asarray(intrinsics), (count, 1, 1))
    one = images[0] if view1 is None else view1
    return pairs_of([Example((jnp.asarray(one), jnp.asarray(images[1])), (targets[0], targets[1]), (lenses, lenses))], count)
