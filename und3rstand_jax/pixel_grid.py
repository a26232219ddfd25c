"""A grid of an image's pixels, where all of them would be more than is needed."""

import math

import numpy as np
from jaxtyping import Float

SAMPLES_A_SIDE = 64
"""At most so many columns and rows."""


def sampled_pixels(height: int, width: int) -> Float[np.ndarray, "N 2"]:
    """(column, row) of the grid's pixels, row by row."""
    columns, rows = np.meshgrid(np.arange(width)[sampling(width)], np.arange(height)[sampling(height)])
    return np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(np.float64)


def sampling(side: int) -> slice:
    """The grid's columns or rows in an image with that many."""
    # An odd step: a step that divides the patch size would see a few places of every patch and never the others.
    step = math.ceil(side / SAMPLES_A_SIDE) | 1
    return slice((side - 1) % step // 2, None, step)
