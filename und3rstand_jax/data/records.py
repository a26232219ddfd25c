"""The types that the modules of `data` exchange: sets of views with depth and cameras, and batches of sets.

No JAX: loader processes import this.

A pair is a set of two views.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

from jaxtyping import Float, Int32, UInt8, UInt32

from und3rstand_jax.support.text import printable

Shape: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

Split: TypeAlias = Literal["train", "val"]
"""The part to train on, and the part held out for validation."""

NOT_RENDERED = -1
"""The value of `Batch.scene` for a set from files."""

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


ViewSet: TypeAlias = tuple[View, ...]
"""Views of one scene, in the same world frame and unit."""


def things_of(views: int) -> str:
    """The name in messages of sets with this number of views: "pairs" or "sets of 4 views"."""
    return "pairs" if views == 2 else f"sets of {views} views"


class UnreadableSet(Exception):
    """A set whose files are missing, damaged or unusable. The message names the file and what is wrong with it.

    It is one printable line, whatever the file's name or a library's error contains: it is written to lists that are read line by line.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Batch(NamedTuple):
    """B sets as the loader passes them to the device, which renders scenes and jitters colours.

    `position` (B,) is each set's place in the endless sequence that the seed determines; a set's random draws depend only on it and
    the seed. `scene` (B,) is the index of a rendered scene, or NOT_RENDERED for a set from files. `views` contain arrays (B, …), with
    placeholders where a scene is to be rendered; it is None if no source reads files.
    """

    position: UInt32[Array, " B"]
    scene: Int32[Array, " B"]
    views: ViewSet | None


def training_scenes() -> range:
    """Indices of the rendered scenes to train on, in order."""
    return range(2**30)


def held_out_scenes() -> range:
    """Indices of the held-out rendered scenes."""
    return range(2**30, 2**31 - 1)
