"""Descriptions of a model's heads: what each reads and yields, and which of them a call runs."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.text import listed

POINTMAP = "pointmap"
"""Chooses the pointmap head (`pts3d` and `conf`), whatever a family calls it."""

CAMERAS = "cameras"
"""The output of a head that estimates all views' cameras."""

POSE_ENCODING = 9
"""How many numbers describe a camera: translation, quaternion, two fields of view; see `und3rstand_jax.model.pose_encoding`."""

HeadChoice = bool | str | Iterable[str]
"""Which heads to run: all (True), none (False), or those with these names ("pointmap")."""


class Head(NamedTuple):
    """A network that turns the views' tokens into maps over each view's pixels, or into cameras.

    Attributes:
        name: the name by which a caller chooses it.
        parts: where its parameters are in the tree: view 1's, then those that all other views share; a single part if all views share it.
        layers: ids of the layers it reads, in its order.
        outputs: what it adds to a view's prediction; "cameras" for the cameras of all views.
    """

    name: str
    parts: tuple[str, ...]
    layers: tuple[str, ...]
    outputs: tuple[str, ...]

    def part(self, view: int) -> str:
        """Where the parameters for a view are; `view` is counted from 0."""
        return self.parts[min(view, len(self.parts) - 1)]


@runtime_checkable
class HasHeads(Protocol):
    """A config that says which heads its model has."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads, in the order of their outputs in predictions; empty for a trunk."""

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """Every layer id, in network order."""


def choose_heads(choice: HeadChoice, config: HasHeads) -> tuple[Head, ...]:
    """The chosen heads, in the config's order.

    Raises:
        OptionError: the model lacks a chosen head, or all heads are chosen and it has none; the message says what it has.
    """
    if isinstance(choice, bool):
        if choice and not config.heads:
            raise OptionError("this backbone has no head (a trunk such as CroCo's); call it with head=False")
        return config.heads if choice else ()
    known = [head.name for head in config.heads]
    names = {choice} if isinstance(choice, str) else set(choice)
    if POINTMAP in names:
        names = (names - {POINTMAP}) | set(pointmap_head(config) or (POINTMAP,))
    if unknown := sorted(names.difference(known), key=str):
        raise OptionError(f"this backbone has no head {listed(map(repr, unknown))}; its heads are: {', '.join(known) or 'none'}")
    return tuple(head for head in config.heads if head.name in names)


def head_of(output: str, config: HasHeads) -> Head | None:
    """The head that makes an output ("desc"); None if no head does."""
    return next((head for head in config.heads if output in head.outputs), None)


def pointmap_head(config: HasHeads) -> tuple[str, ...]:
    """The choice of the pointmap head; empty for a trunk."""
    return tuple(head.name for head in config.heads if "pts3d" in head.outputs)


def camera_head(config: HasHeads) -> tuple[str, ...]:
    """The choice of the head of cameras; of none for a model without one."""
    return tuple(head.name for head in config.heads if CAMERAS in head.outputs)


def reads_several_layers(config: HasHeads) -> bool:
    """Whether the pointmap head reads several layers, as a DPT head does; such a head needs memory for many channels per pixel."""
    return len(head_layers(config)) > 1


def head_layers(config: HasHeads, choice: HeadChoice | None = None) -> tuple[str, ...]:
    """The layers that the chosen heads read, in network order; by default those of the pointmap head, if there is one."""
    heads = choose_heads(pointmap_head(config) if choice is None else choice, config)
    read = {layer for head in heads for layer in head.layers}
    return tuple(layer for layer in config.layer_ids if layer in read)
