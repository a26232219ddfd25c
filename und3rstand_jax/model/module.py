"""What the models of all families share: a pure function of parameters, views and edits that runs only as far as needed.

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
"""The values at one site, for every view, while the model runs; see `und3rstand_jax.model.sites` for their shape."""


class HeadOutputs(NamedTuple):
    """The heads' outputs for a set of views: each view's maps, all views' cameras, and the captured sites inside heads."""

    pointmaps: tuple[Pointmap, ...] = ()
    cameras: Cameras | None = None
    inside: dict[str, Traced] = {}


class MultiViewModel(nn.Module):
    """A model. In its parameter tree, each stack of equal blocks has one leading layer axis.

    Attributes:
        config: the architecture.
        dtype: the dtype of the trunk's computation and (except in VGGT) of its activations, float32 or bfloat16; heads are always float32.
        precision: of the trunk's matrix products. By default exact for float32, which GPUs and TPUs would otherwise
            silently lower to TF32 or bfloat16.
        attention: how attention is computed, see `und3rstand_jax.model.attention.attend`.
        unroll: write the stacks out instead of scanning them. Slow to compile; XLA's cost analysis counts a loop's
            body once, so its figures are right only without loops.
        remat: recompute each block in the backward pass instead of storing its intermediate values.
        capture_dtype: the dtype in which a VGGT's pairs of blocks keep what is captured, in place of float32. Its heads would read rounded
            tokens, so it is for passes without heads.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    precision: lax.Precision | None = None
    attention: AttentionImplementation = "auto"
    unroll: bool = False
    remat: bool = False
    capture_dtype: DTypeLike | None = None

    @property
    def stream_dtype(self) -> jnp.dtype:
        """The dtype of the residual stream, and so of captured layers and of the tokens that a pass starts from."""
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
            views: RGB in [-1, 1], each (B, H, W, 3) or (B, 3, H, W), as many as the config allows. Sides are multiples of the patch
                size; the config determines whether sizes may differ. Omitted if the pass begins at a layer.
            capture: patterns of layers (`und3rstand_jax.model.layer_ids`) and of sites inside them, see `und3rstand_jax.model.sites`. The
                output contains exactly the sites that match, with edits applied. Attention weights and scores add
                4·B·heads·N·M bytes for each view and block. Capturing a site inside a head runs that head.
            head: which heads to run: all, none, or those with these names, see `und3rstand_jax.model.head_choice`. A head that is not run
                costs nothing.
            edits: what to change during the pass, see `und3rstand_jax.model.edits`. Edits after the last needed site have no effect.
            start: captures of an earlier pass, see `und3rstand_jax.model.start`. The pass begins after the last layer in it; edits of
                that layer are applied to the given tokens.

        Returns:
            The captured values and the heads' outputs for each view. All pointmaps are in one frame: view 1's or, for a VGGT, roughly that.

        Raises:
            LayerError: a pattern matches nothing, a needed site comes before the start and is not in it, a view lacks captured queries, or
                captured scores or weights over all views are too large.
            EditError: an edit cannot be applied; see `und3rstand_jax.model.site_edits.resolve_edits`.
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
            raise OptionError("a pass with start= takes no images; leave out the images, or start=")
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
        """Computes at least the needed sites, and nothing after the last of them, from the images or from the tokens at the start."""
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
        """Computes at least the missing sites, and nothing after the last of them.

        Args:
            arithmetic: how to compute.
            tokens: the views' images, (B, H, W, 3) each, or their tokens after the layer `since`.
            grids: (rows, columns) of each view's patches.
            missing: sites after `since`.
            edits: of any sites.
            since: a layer, or None to begin with the images.
            before: the tokens before the block that `since` is in the middle of, if the config says that the block needs them.
        """
        raise NotImplementedError

    def run_heads(self, heads: Sequence[Head], layers: Mapping[str, Traced], sizes: ImageSizes, captured: Collection[str]) -> HeadOutputs:
        """Runs heads on the layers that they read.

        Args:
            heads: some of the config's.
            layers: at least those that the heads read.
            sizes: (height, width) of each view.
            captured: sites to keep; the result includes those inside heads.
        """
        raise NotImplementedError
