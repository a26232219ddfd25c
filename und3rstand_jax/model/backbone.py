"""A model bound to its parameters: what `load_backbone` returns."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike

from und3rstand_jax.model.affine import SiteEdits
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edits
from und3rstand_jax.model.families import backbone_module
from und3rstand_jax.model.head_choice import HeadChoice, choose_heads
from und3rstand_jax.model.images import as_views
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.site_edits import resolve_edits
from und3rstand_jax.model.sites import select_captures
from und3rstand_jax.model.stack import Params
from und3rstand_jax.model.start import as_start, token_grids

Image = jax.Array | npt.ArrayLike
"""A batch of images in any form that NumPy reads, such as a torch tensor."""


@dataclasses.dataclass(frozen=True)
class ProbedLayers:
    """The layers that have a probe, in the order of the probes' outputs."""

    layer_ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A model (DUSt3R, MASt3R, VGGT) bound to its parameters. Calling it runs the jitted `module.apply`.

    Attributes:
        module: the Linen module.
        params: its parameters, a plain nested dict.
        probed_layers: what a call captures by default.
    """

    module: MultiViewModel
    params: Params
    probed_layers: ProbedLayers = ProbedLayers()

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.module.config

    def __call__(
        self,
        *views: Image,
        capture: str | Iterable[str] | None = None,
        head: HeadChoice | None = None,
        edits: Edits | SiteEdits | None = None,
        start: BackboneOutput | None = None,
    ) -> BackboneOutput:
        """Runs all views, each (B, H, W, 3) or (B, 3, H, W) in [-1, 1]; see `MultiViewModel.__call__` for arguments and errors.

        By default it captures the probed layers and runs no head; a backbone without probes runs all of its heads. Edits with other
        places or numbers at the same sites reuse the compiled program.
        """
        if capture is None:
            capture = self.probed_layers.layer_ids
        if head is None:
            head = not self.probed_layers.layer_ids and bool(self.config.heads)
        captured = select_captures(capture, self.config)
        images = tuple(view if isinstance(view, jax.Array) else np.asarray(view) for view in views)
        if edits is not None and not isinstance(edits, dict):
            edits = self.resolve(edits, images if start is None else start)
        heads = tuple(chosen.name for chosen in choose_heads(head, self.config))
        return _apply(self.module, self.params, images, captured, heads, edits, start)

    def resolve(self, edits: Edits, inputs: Sequence[Image] | BackboneOutput) -> SiteEdits:
        """Converts edits to the numbers that the compiled program takes, for images like these or for a start.

        Raises:
            LayerError, EditError: as for `und3rstand_jax.model.site_edits.resolve_edits`, or the start does not fit the model.
            ImageError, OptionError: the inputs are not images, or too few or too many.
        """
        if isinstance(inputs, BackboneOutput):
            start = as_start(inputs, self.config, self.module.stream_dtype)
            sizes, batch = start.image_sizes, start.batch
        else:
            views = as_views([view if isinstance(view, jax.Array) else np.asarray(view) for view in inputs], self.config)
            sizes, batch = tuple((view.shape[1], view.shape[2]) for view in views), len(views[0])
        return resolve_edits(edits, self.config, token_grids(sizes, self.config), batch)


def random_backbone(config: ModelConfig, seed: int, dtype: DTypeLike = jnp.float32) -> Backbone:
    """A backbone with random weights, as a control: whatever probes achieve on it, they achieve on their own."""
    return Backbone(backbone_module(config, dtype=jnp.dtype(dtype)), _random_params(backbone_module(config), jax.random.key(seed)))


# A named function, so that another seed or another study does not compile it again.
@functools.partial(jax.jit, static_argnums=0)
def _random_params(module: MultiViewModel, key: jax.Array) -> Params:
    image = jnp.zeros((1, module.config.patch_size, module.config.patch_size, 3))
    return cast(Params, module.init(key, image, image, head=bool(module.config.heads))["params"])


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _apply(
    module: MultiViewModel,
    params: Params,
    views: tuple[jax.Array | np.ndarray, ...],
    capture: tuple[str, ...],
    head: tuple[str, ...],
    edits: SiteEdits | None,
    start: BackboneOutput | None,
) -> BackboneOutput:
    output = module.apply({"params": params}, *views, capture=capture, head=head, edits=edits, start=start)
    return cast(BackboneOutput, output)
