"""A model bound to its parameters: what `load_backbone` returns."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import cast

import jax
import numpy as np
import numpy.typing as npt

from und3rstand_jax.model.captures import select_captures
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.stack import Params

Image = jax.Array | npt.ArrayLike
"""A batch of images in anything NumPy reads, a torch tensor for example."""


@dataclasses.dataclass(frozen=True)
class ProbedLayers:
    """The layers that have a probe, in the order of the probes' outputs."""

    layer_ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A DUSt3R bound to its parameters. Calling it runs the jitted `module.apply`.

    Attributes:
        module: the Linen module.
        params: its parameters, a plain nested dict.
        probed_layers: what a call captures by default.
    """

    module: DUSt3R
    params: Params
    probed_layers: ProbedLayers = ProbedLayers()

    @property
    def config(self) -> BackboneConfig:
        """The architecture."""
        return self.module.config

    def __call__(self, view1: Image, view2: Image, capture: str | Iterable[str] | None = None, head: bool | None = None) -> BackboneOutput:
        """Runs both views, (B, H, W, 3) or (B, 3, H, W) in [-1, 1]; see `DUSt3R.__call__`, also for what it raises.

        By default it captures the probed layers and runs no head; a backbone without probes runs its head.
        """
        if capture is None:
            capture = self.probed_layers.layer_ids
        if head is None:
            head = not self.probed_layers.layer_ids and self.config.head_type is not None
        captured = select_captures(capture, self.config)
        one, two = (view if isinstance(view, jax.Array) else np.asarray(view) for view in (view1, view2))
        return _apply(self.module, self.params, one, two, captured, head)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _apply(
    module: DUSt3R, params: Params, view1: jax.Array | np.ndarray, view2: jax.Array | np.ndarray, capture: tuple[str, ...], head: bool
) -> BackboneOutput:
    return cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=capture, head=head))
