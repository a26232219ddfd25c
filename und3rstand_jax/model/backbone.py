"""Models bound to their parameters: what `load_*` returns."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, cast

import jax
import numpy as np
from jax.typing import ArrayLike

from und3rstand_jax.model.captures import select_captures
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.model.output import BackboneOutput


@dataclasses.dataclass(frozen=True)
class ProbedLayers:
    """The layers that have a probe, in the order in which the probes' outputs come."""

    layer_ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A DUSt3R bound to its parameters. Calling it runs the jitted `module.apply`.

    `module` and `params` are all it is: a Linen module and a plain nested dict. `probed_layers` are what a call
    captures unless told otherwise.
    """

    module: DUSt3R
    params: dict[str, Any]
    probed_layers: ProbedLayers = ProbedLayers()

    @property
    def config(self) -> BackboneConfig:
        """The architecture."""
        return self.module.config

    def __call__(
        self, view1: ArrayLike, view2: ArrayLike, capture: str | Iterable[str] | None = None, head: bool | None = None
    ) -> BackboneOutput:
        """Runs both views, (B, H, W, 3) or (B, 3, H, W) in [-1, 1]; see `DUSt3R.__call__`.

        By default it captures the probed layers and runs no head; a backbone without probes runs its head.
        """
        if capture is None:
            capture = self.probed_layers.layer_ids
        if head is None:
            head = not self.probed_layers.layer_ids and self.config.head_type is not None
        captured = select_captures(capture, self.config)
        return _apply(self.module, self.params, _as_array(view1), _as_array(view2), captured, head)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _apply(
    module: DUSt3R, params: dict[str, Any], view1: jax.Array, view2: jax.Array, capture: tuple[str, ...], head: bool
) -> BackboneOutput:
    return cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=capture, head=head))


def _as_array(image: ArrayLike) -> ArrayLike:
    """Anything NumPy reads, a torch tensor among them, in a form that jit takes."""
    return image if isinstance(image, jax.Array) else np.asarray(image)
