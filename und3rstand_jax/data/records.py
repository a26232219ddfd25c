"""What every source of training data yields: a pair of views with depth and cameras. No JAX here: loader processes import this.

What the loader hands to the devices each step. No JAX here: loader processes import this.

Which of the endless scenes are for training and which are held out. No JAX here: loader processes import this.
"""

from typing import Any, NamedTuple

from jaxtyping import Float, Int32, UInt8, UInt32

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


NOT_RENDERED = -1


class Batch(NamedTuple):
    """A batch of B pairs, before scenes are rendered and colours changed, which the device does.

    `position` (B,) is each pair's place in the endless sequence that the seed decides; random choices hang on it and on nothing
    else. `scene` (B,) is the index of a rendered scene, or −1 for a pair of files. `pair` holds arrays (B, …), zeros where a
    scene is to be rendered; it is None where nothing comes from files.
    """

    position: UInt32[Any, " B"]
    scene: Int32[Any, " B"]
    pair: Pair | None


def training_scenes() -> range:
    """Numbers of the scenes that are trained on, in order."""
    return range(2**30)


def held_out_scenes() -> range:
    """Numbers of the scenes that are validated on."""
    return range(2**30, 2**31 - 1)
