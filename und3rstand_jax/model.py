"""Models bound to their parameters: what `load_*` returns."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, cast

import jax
import numpy as np
from jax.typing import ArrayLike

from und3rstand_jax.attention_ids import select_captures
from und3rstand_jax.config import BackboneConfig
from und3rstand_jax.dust3r import DUSt3R
from und3rstand_jax.errors import UserError
from und3rstand_jax.output import BackboneOutput, ImageSizes, ViewTokens
from und3rstand_jax.pointmap import Pointmap
from und3rstand_jax.probe_config import ProbeConfig, ProbeGroup
from und3rstand_jax.probes import PointmapProbes, read_group


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


@dataclasses.dataclass(frozen=True, eq=False)
class Probes:
    """Pointmap probes bound to their parameters."""

    module: PointmapProbes
    params: dict[str, Any]

    @property
    def config(self) -> ProbeConfig:
        """The shape of every probe."""
        return self.module.config

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """The probed layers, in the order of the outputs."""
        return self.config.layer_ids

    def __call__(self, features: BackboneOutput) -> tuple[tuple[Pointmap, Pointmap], ...]:
        """Pointmaps of both views from every probed layer; see `PointmapProbes.__call__`."""
        return _probe(self.module, self.params, features)

    def read_layer(self, layer_id: str, features: BackboneOutput) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of both views from one probed layer: all of them, one after the other, need one layer's memory.

        Raises:
            UserError: the layer has no probe.
        """
        for index, group in enumerate(self.config.groups):
            if layer_id in group.layer_ids:
                place = group.layer_ids.index(layer_id)
                params = jax.tree.map(lambda leaf, place=place: leaf[place : place + 1], self.params[f"group{index}"])
                # Without the names, layers of equal shape share one compiled program.
                nameless = dataclasses.replace(group, layer_ids=()), dataclasses.replace(self.config, groups=())
                return _read_layer(*nameless, params, features[layer_id], features.image_sizes)
        raise UserError(f"layer {layer_id} has no probe; probed are {', '.join(self.layer_ids)}")


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _apply(
    module: DUSt3R, params: dict[str, Any], view1: jax.Array, view2: jax.Array, capture: tuple[str, ...], head: bool
) -> BackboneOutput:
    return cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=capture, head=head))


@functools.partial(jax.jit, static_argnums=0)
def _probe(module: PointmapProbes, params: dict[str, Any], features: BackboneOutput) -> tuple[tuple[Pointmap, Pointmap], ...]:
    return cast(tuple[tuple[Pointmap, Pointmap], ...], module.apply({"params": params}, features))


def _as_array(image: ArrayLike) -> ArrayLike:
    """Anything NumPy reads, a torch tensor among them, in a form that jit takes."""
    return image if isinstance(image, jax.Array) else np.asarray(image)


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _read_layer(
    group: ProbeGroup, config: ProbeConfig, params: dict[str, Any], tokens: ViewTokens, image_sizes: ImageSizes
) -> tuple[Pointmap, Pointmap]:
    preds = read_group(params, [view[None] for view in tokens], image_sizes, group, config)
    return jax.tree.map(lambda leaf: leaf[0], preds)
