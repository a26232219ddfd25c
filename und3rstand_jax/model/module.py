"""What models of every family have in common: a pure function of parameters, views and edits that runs as far as it is asked to.

    (params, *views, edits) -> (pointmaps, activations)

`module.apply({"params": params}, *views, capture=…, head=…, edits=…)`; `capture`, `head` and the sites of edits are static under `jit`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from und3rstand_jax.model.affine import SiteEdits, edited_layer
from und3rstand_jax.model.attention import AttentionImplementation
from und3rstand_jax.model.blocks import Arithmetic
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edits import Edits
from und3rstand_jax.model.head_choice import Head, HeadChoice, choose_heads
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.model.images import as_views
from und3rstand_jax.model.output import BackboneOutput, Cameras, Grids, ImageSizes, ViewTokens
from und3rstand_jax.model.site_edits import resolve_edits
from und3rstand_jax.model.sites import check_captures, parse_site, select_captures
from und3rstand_jax.model.start import Start, as_start, token_grids
from und3rstand_jax.support.errors import OptionError

Traced = tuple[Float[Array, "B ..."], ...]
"""What one site has, of every view, while the model runs; see `und3rstand_jax.model.sites` for its shape."""


class HeadOutputs(NamedTuple):
    """What heads make of a set of views: each view's maps, all views' cameras, and the captured sites inside of heads."""

    pointmaps: tuple[Pointmap, ...] = ()
    cameras: Cameras | None = None
    inside: dict[str, Traced] = {}


class MultiViewModel(nn.Module):
    """A model. Its parameter tree has one leading layer axis for each stack of equal blocks.

    Attributes:
        config: the architecture.
        dtype: what the trunk computes in and its activations come in, float32 or bfloat16; heads are always float32.
        precision: of the trunk's matrix products. By default exact for float32, which GPUs and TPUs would otherwise
            silently lower to TF32 or bfloat16.
        attention: how attention is computed, see `und3rstand_jax.model.attention.attend`.
        unroll: write the stacks out instead of scanning them. Slow to compile; XLA's cost analysis counts a loop's
            body once, so its figures are right only without loops.
        remat: compute each block again for a gradient instead of holding everything inside it.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    precision: lax.Precision | None = None
    attention: AttentionImplementation = "auto"
    unroll: bool = False
    remat: bool = False

    @property
    def stream_dtype(self) -> jnp.dtype:
        """What the residual stream is computed in, and so what layers come in and passes begin with."""
        return jnp.dtype(self.dtype)

    @nn.compact
    def __call__(
        self,
        *views: ArrayLike,
        capture: str | Iterable[str] = (),
        head: HeadChoice = True,
        edits: Edits | SiteEdits | None = None,
        start: BackboneOutput | None = None,
    ) -> BackboneOutput:
        """Runs all views of B sets through the model.

        Args:
            views: RGB in [-1, 1], (B, H, W, 3) or (B, 3, H, W) each, as many as the config allows; sides are multiples of the patch
                size; whether their sizes may differ is the config's to say. Left out where the pass begins at a layer.
            capture: patterns of layers (`und3rstand_jax.model.layer_ids`) and of what is inside them, see `und3rstand_jax.model.sites`;
                the output holds exactly the sites that they match, as they are after edits. Attention weights and scores add
                4·B·heads·N·M bytes for each view and block. To capture what is inside of a head runs it.
            head: which heads to run: all, none, or those of these names, see `und3rstand_jax.model.head_choice`. One that is not run costs
                nothing.
            edits: what to change on the way, see `und3rstand_jax.model.edits`; those of sites behind all that is needed change nothing.
            start: captures of an earlier pass, see `und3rstand_jax.model.start`. The pass begins after the last layer in it; edits of
                that layer apply to the tokens given.

        Returns:
            What was captured and what the heads make of each view; all pointmaps are in one frame, view 1's or, of a VGGT, about it.

        Raises:
            LayerError: a pattern matches nothing, a site lies before the start and is not in it, or what is captured of attention over all
                views is too large.
            EditError: an edit cannot be made; see `und3rstand_jax.model.site_edits.resolve_edits`.
            ImageError: a view is not a batch of images, the views' batches differ in size, or the model does not take these sizes together.
            OptionError: there is no such head to run; the model takes fewer or more views; both images and a start are given, or neither.
        """
        config = self.config
        heads = choose_heads(head, config)
        if start is None:
            inputs = as_views(views, config)
            begin, sizes, batch = None, tuple((view.shape[1], view.shape[2]) for view in inputs), len(inputs[0])
        elif not views:
            begin = as_start(start, config, self.stream_dtype)
            inputs, sizes, batch = begin.tokens, begin.image_sizes, begin.batch
        else:
            raise OptionError("a pass from start= on takes no images; leave them out, or start")
        grids = token_grids(sizes, config)
        affines = resolve_edits(edits, config, grids, batch)
        captured = select_captures(capture, config)
        check_captures(captured, config, grids, batch)
        inside_heads = config.inside_heads
        inside = {inside_heads[site] for site in captured if site in inside_heads}
        heads = tuple(head for head in config.heads if head in heads or head.name in inside)
        needed = {*captured, *(layer for head in heads for layer in head.layers)} - set(inside_heads)
        if self.is_initializing():
            needed |= set(config.layer_ids)
        layers = self._layers(inputs, begin, grids, needed, affines)
        found = self.run_heads(heads, layers, sizes, captured)
        layers |= found.inside
        of_layers = {parse_site(site).layer_id for site in captured} - set(inside_heads)
        special = {layer: len(names) for layer in sorted(of_layers) if (names := config.special_tokens(layer))}
        return BackboneOutput({layer: layers[layer] for layer in captured}, sizes, found.pointmaps, found.cameras, special)

    def _layers(self, views: tuple[Array, ...], begin: Start | None, grids: Grids, needed: set[str], edits: SiteEdits) -> dict[str, Traced]:
        """At least the needed sites, and nothing after the last of them; from the images, or from the tokens at the start."""
        layers: dict[str, Traced] = {}
        since, before, tokens = None, None, views
        if begin is not None:
            begin.check(needed, edits)
            since, before = begin.layer_id, begin.before_block(self.config)
            layers = edited_layer(since, dict(begin.layers), edits)
            tokens = layers[since]
        missing = needed - set(layers)
        dtype = jnp.dtype(self.dtype)
        exact = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
        arithmetic = Arithmetic(dtype, exact if self.precision is None else self.precision, self.attention)
        return layers | self.run_trunk(arithmetic, tokens, grids, missing, edits, since, before)

    def run_trunk(
        self,
        arithmetic: Arithmetic,
        tokens: tuple[Array, ...],
        grids: Grids,
        missing: set[str],
        edits: SiteEdits,
        since: str | None,
        before: ViewTokens | None,
    ) -> dict[str, Traced]:
        """At least the missing sites, and nothing after the last of them.

        Args:
            arithmetic: how to compute.
            tokens: the views' images, (B, H, W, 3) each, or their tokens after the layer `since`.
            grids: (rows, columns) of each view's patches.
            missing: sites behind `since`.
            edits: of any sites.
            since: a layer, or None to begin with the images.
            before: the tokens before the block in whose middle `since` is, where the config says that it needs them.
        """
        raise NotImplementedError

    def run_heads(self, heads: Sequence[Head], layers: Mapping[str, Traced], sizes: ImageSizes, captured: Collection[str]) -> HeadOutputs:
        """What heads make of the layers that they read.

        Args:
            heads: of the config's.
            layers: at least those that they read.
            sizes: (height, width) of each view.
            captured: sites to keep; those inside of heads are among the result.
        """
        raise NotImplementedError
