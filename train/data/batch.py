"""What the loader hands to the devices each step. No JAX here: loader processes import this."""

from typing import Any, NamedTuple

from jaxtyping import Int32, UInt32

from train.data.records import Pair

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
