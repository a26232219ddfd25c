"""What every source of training data yields: a pair of views with depth and cameras. No JAX here: loader processes import this."""

from typing import Any, NamedTuple

from jaxtyping import Float, UInt8

Shape = tuple[int, int]
"""(height, width) in pixels."""


class View(NamedTuple):
    """One photo and its geometry; in a batch, every array has a leading axis B. NumPy on the host, JAX on the device.

    `image` (H, W, 3) is 8-bit RGB. `depth` (H, W) is z along the optical axis in the unit of `cam2world`, 0 where unknown.
    `intrinsics` (3, 3) is in pixels, without skew, pixel centres at integers. `cam2world` (4, 4) takes points of the camera
    (x right, y down, z forward) to the world.
    """

    image: UInt8[Any, "*B H W 3"]
    depth: Float[Any, "*B H W"]
    intrinsics: Float[Any, "*B 3 3"]
    cam2world: Float[Any, "*B 4 4"]


class Pair(NamedTuple):
    """Two views of one scene, in one world and one unit."""

    view1: View
    view2: View


class UnreadablePair(Exception):
    """A pair whose files are missing or damaged. The message names the file and what is wrong with it."""
