"""What travels through this floor: a pair of views with depth and cameras, and a batch of pairs. No JAX: loader processes import this."""

from typing import Any, Literal, NamedTuple, TypeAlias

from jaxtyping import Float, Int32, UInt8, UInt32

from und3rstand_jax.support.text import printable

Shape: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

Split: TypeAlias = Literal["train", "val"]
"""What is trained on, and what is held out for validation."""

NOT_RENDERED = -1
"""`Batch.scene` of a pair that comes from files."""

Array: TypeAlias = Any
"""NumPy's on the host, JAX's on the device; not written out, because that would import JAX."""


class View(NamedTuple):
    """One photo and its geometry. In a batch, every array has a leading axis B.

    `image` (H, W, 3) is 8-bit RGB. `depth` (H, W) is z along the optical axis in the unit of `cam2world`, 0 where unknown.
    `intrinsics` (3, 3) is in pixels, without skew, pixel centres at integers. `cam2world` (4, 4) takes points from the camera's
    frame (x right, y down, z forward) to the world.
    """

    image: UInt8[Array, "*B H W 3"]
    depth: Float[Array, "*B H W"]
    intrinsics: Float[Array, "*B 3 3"]
    cam2world: Float[Array, "*B 4 4"]


class Pair(NamedTuple):
    """Two views of one scene, in one world and one unit."""

    view1: View
    view2: View


class UnreadablePair(Exception):
    """A pair whose files are missing, damaged or unusable. The message names the file and what is wrong with it.

    It is one printable line, whatever the file's name or a library's error holds: it is written to lists that are read line by line.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Batch(NamedTuple):
    """B pairs as the loader hands them to the device, which renders scenes and jitters colours.

    `position` (B,) is each pair's place in the endless sequence that the seed determines; a pair's random draws depend on the seed
    and this alone. `scene` (B,) is the index of a rendered scene, or NOT_RENDERED for a pair of files. `pair` holds arrays
    (B, …), placeholders where a scene is to be rendered; it is None where no source reads files.
    """

    position: UInt32[Array, " B"]
    scene: Int32[Array, " B"]
    pair: Pair | None


def training_scenes() -> range:
    """Indices of the rendered scenes to train on, in order."""
    return range(2**30)


def held_out_scenes() -> range:
    """Indices of the held-out rendered scenes."""
    return range(2**30, 2**31 - 1)
