"""DUSt3R as a pure function of its parameters and two views, or more (Wang et al., CVPR 2024, section 3.1).

    (params, view1, view2, edits) -> (pointmaps, activations)

`DUSt3R(config).apply({"params": params}, view1, view2, capture=…, head=…, edits=…)` runs exactly as far as the captured sites
and the heads need, and edits what it is told to on the way; `capture`, `head` and the sites of edits are static under `jit`.
"""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from und3rstand_jax.model.affine import SiteEdits
from und3rstand_jax.model.attention import AttentionImplementation
from und3rstand_jax.model.blocks import Arithmetic
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.trunk import Decoder, Encoder, Traced, edited_layer
from und3rstand_jax.model.edits import Edits
from und3rstand_jax.model.head_choice import Head, HeadChoice, choose_heads
from und3rstand_jax.model.heads import DPTHead, LinearHead, Pointmap, to_pointmap
from und3rstand_jax.model.images import as_views
from und3rstand_jax.model.output import BackboneOutput, Grids
from und3rstand_jax.model.site_edits import resolve_edits
from und3rstand_jax.model.sites import select_captures
from und3rstand_jax.model.start import Start, as_start, token_grids
from und3rstand_jax.support.errors import OptionError


class DUSt3R(nn.Module):
    """The model. Its parameter tree has one leading layer axis for each stack of equal blocks.

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

    config: BackboneConfig
    dtype: DTypeLike = jnp.float32
    precision: lax.Precision | None = None
    attention: AttentionImplementation = "auto"
    unroll: bool = False
    remat: bool = False

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
                size (16), the views' sizes may differ. Left out where the pass begins at a layer.
            capture: patterns of layers (`und3rstand_jax.model.layer_ids`) and of what is inside them, see `und3rstand_jax.model.sites`;
                the output holds exactly the sites that they match, as they are after edits. Attention weights and scores add
                4·B·heads·N·M bytes for each view and block.
            head: which heads to run: all, none, or those of these names, see `und3rstand_jax.model.head_choice`. One that is not run costs
                nothing.
            edits: what to change on the way, see `und3rstand_jax.model.edits`; those of sites behind all that is needed change nothing.
            start: captures of an earlier pass, see `und3rstand_jax.model.start`. The pass begins after the last layer in it; edits of
                that layer apply to the tokens given.

        Returns:
            What was captured and what the heads make of each view; all pointmaps are in view 1's frame.

        Raises:
            LayerError: a pattern matches nothing, or a site lies before the start and is not in it.
            EditError: an edit cannot be made; see `und3rstand_jax.model.site_edits.resolve_edits`.
            ImageError: a view is not a batch of images, or the views' batches differ in size.
            OptionError: there is no such head to run; the model takes fewer or more views; both images and a start are given, or neither.
        """
        config = self.config
        heads = choose_heads(head, config)
        if start is None:
            inputs = as_views(views, config)
            begin, sizes, batch = None, tuple((view.shape[1], view.shape[2]) for view in inputs), len(inputs[0])
        elif not views:
            begin = as_start(start, config, jnp.dtype(self.dtype))
            inputs, sizes, batch = begin.tokens, begin.image_sizes, begin.batch
        else:
            raise OptionError("a pass from start= on takes no images; leave them out, or start")
        grids = token_grids(sizes, config)
        affines = resolve_edits(edits, config, grids, batch)
        captured = select_captures(capture, config)
        needed = {*captured, *(layer for head in heads for layer in head.layers)}
        if self.is_initializing():
            needed |= set(config.layer_ids)
        layers = self._trunk(inputs, begin, grids, needed, affines)
        modules: dict[str, nn.Module] = {}
        pointmaps = (self.predict(heads, layers, grids, view, modules) for view in range(len(grids))) if heads else ()
        return BackboneOutput({layer: layers[layer] for layer in captured}, sizes, pointmaps)

    def _trunk(self, views: tuple[Array, ...], begin: Start | None, grids: Grids, needed: set[str], edits: SiteEdits) -> dict[str, Traced]:
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
        needs_decoder = any(site.startswith("decoder.") for site in missing)
        in_decoder = since is not None and since.startswith("decoder.")
        if missing and not in_decoder and since != "encoder.norm":
            encoder = Encoder(arithmetic, self.config, self.unroll, self.remat, name="encoder")
            layers |= encoder(tokens, grids, missing | {"encoder.norm"} if needs_decoder else missing, edits, since)
        if needs_decoder:
            decoder = Decoder(arithmetic, self.config, self.unroll, self.remat, name="decoder")
            layers |= decoder(
                tokens if in_decoder else layers["encoder.norm"], grids, missing, edits, since if in_decoder else None, before
            )
        return layers

    def predict(
        self, heads: Iterable[Head], layers: Mapping[str, Traced], grids: Grids, view: int, modules: dict[str, nn.Module]
    ) -> Pointmap:
        """What a view's heads make of its token maps: the first view's own, or those that all others share.

        Args:
            heads: to run, of the config's.
            layers: at least those that they read.
            grids: (rows, columns) of each view's tokens.
            view: from 0.
            modules: those made for earlier views, by name; new ones are added.
        """
        prediction = Pointmap()
        for head in heads:
            name = f"{head.scope}{min(view + 1, 2)}"
            if name not in modules:
                modules[name] = self.head_module(head, name)
            maps = (layers[layer][view].reshape(-1, *grids[view], self.config.layer_width(layer)) for layer in head.layers)
            prediction |= self.read_head(head, modules[name](*maps))
        return prediction

    def head_module(self, head: Head, name: str) -> nn.Module:
        """The network of one of the config's heads, under this name; a family with further heads has theirs."""
        config = self.config
        return DPTHead(name=name) if config.pointmap_kind == "dpt" else LinearHead(config.patch_size, name=name)

    def read_head(self, head: Head, raw: Float[Array, "B H W K"]) -> Pointmap:
        """A head's raw channels as what it adds to a prediction."""
        return to_pointmap(raw, self.config.depth_mode, self.config.conf_mode)
