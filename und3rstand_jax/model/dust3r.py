"""DUSt3R as a pure function of its parameters and two views (Wang et al., CVPR 2024).

    (params, view1, view2) -> (pointmaps, activations)

`DUSt3R(config).apply({"params": params}, view1, view2, capture=…, head=…)` runs exactly as far as the captured layers
and the heads need; `capture` and `head` are static under `jit`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from und3rstand_jax.model.attention import AttentionImplementation
from und3rstand_jax.model.captures import select_captures
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.decoder import Decoder
from und3rstand_jax.model.encoder import Encoder
from und3rstand_jax.model.heads import DPTHead, LinearHead, head_depths
from und3rstand_jax.model.images import as_view
from und3rstand_jax.model.output import BackboneOutput, Grids, ViewTokens, pair
from und3rstand_jax.model.pointmap import Pointmap, to_pointmap
from und3rstand_jax.model.stack import Streams
from und3rstand_jax.support.errors import UserError


class DUSt3R(nn.Module):
    """The model. Its parameter tree has one leading layer axis for each stack of equal blocks.

    Attributes:
        config: the architecture.
        dtype: what the trunk computes in and its activations come in, float32 or bfloat16; heads are float32 always.
        precision: of the trunk's matrix products. By default exact for float32, which GPUs and TPUs would otherwise
            lower to TF32 or bfloat16 without a word.
        attention: how attention is computed, see `und3rstand_jax.model.attention.attend`.
        unroll: write the stacks out instead of scanning them. Slow to compile; XLA's cost analysis counts a loop's
            body once, so its figures are right only without loops.
    """

    config: BackboneConfig
    dtype: Any = jnp.float32
    precision: lax.Precision | None = None
    attention: AttentionImplementation = "auto"
    unroll: bool = False

    @nn.compact
    def __call__(
        self,
        view1: Float[Array, "B H1 W1 3"],
        view2: Float[Array, "B H2 W2 3"],
        capture: str | Iterable[str] = (),
        head: bool = True,
    ) -> BackboneOutput:
        """Runs both views through the model.

        Args:
            view1, view2: RGB in [-1, 1], (B, H, W, 3) or (B, 3, H, W); sides are multiples of 16, the views' sizes may
                differ.
            capture: layer patterns, see `und3rstand_jax.model.layer_ids`; the output holds exactly the layers they match. Patterns
                of attention weights (`decoder.*.cross_attn.weights`, `decoder.3.cross_attn.weights:0-3`), see
                `und3rstand_jax.model.captures`, add 4·B·heads·N·M bytes a view and block.
            head: whether to run the heads.

        Returns:
            The captured layers' tokens and attention weights and, with `head`, both pointmaps in view 1's frame.

        Raises:
            UserError: a pattern matches nothing, a view is no image batch, or there is no head to run.
        """
        config = self.config
        if head and config.head_type is None:
            raise UserError("this backbone has no head (a trunk such as CroCo's); call it with head=False")
        views = (as_view(view1, config.patch_size, "view1"), as_view(view2, config.patch_size, "view2"))
        if views[0].shape[0] != views[1].shape[0]:
            raise UserError(f"view1 holds {views[0].shape[0]} images and view2 {views[1].shape[0]}; pairs need as many of each")
        captured = select_captures(capture, config)
        needed = {*captured, *(head_layers(config) if head else ())}
        if self.is_initializing():
            needed |= set(config.layer_ids)

        sizes = pair((view.shape[1], view.shape[2]) for view in views)
        grids = pair((height // config.patch_size, width // config.patch_size) for height, width in sizes)
        layers = self._trunk(views, grids, needed)
        pred1, pred2 = self._heads(layers, grids) if head else (None, None)
        return BackboneOutput({layer: layers[layer] for layer in captured}, sizes, pred1, pred2)

    def _trunk(self, views: Streams, grids: Grids, needed: set[str]) -> dict[str, ViewTokens]:
        """At least the needed layers, and nothing behind the last of them."""
        if not needed:
            return {}
        dtype = jnp.dtype(self.dtype)
        exact = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
        precision = exact if self.precision is None else self.precision
        parts = {"dtype": dtype, "precision": precision, "attention": self.attention, "config": self.config, "unroll": self.unroll}
        needs_decoder = any(layer.startswith("decoder.") for layer in needed)
        layers = Encoder(**parts, name="encoder")(views, needed | {"encoder.norm"} if needs_decoder else needed)
        if needs_decoder:
            layers |= Decoder(**parts, name="decoder")(layers["encoder.norm"], grids, needed)
        return layers

    def _heads(self, layers: Mapping[str, ViewTokens], grids: Grids) -> tuple[Pointmap, Pointmap]:
        """Each view's own head on its token maps."""
        config = self.config

        def pointmap(view: int) -> Pointmap:
            maps = [layers[layer][view].reshape(-1, *grids[view], config.layer_width(layer)) for layer in head_layers(config)]
            name = f"head{view + 1}"
            head = DPTHead(name=name) if config.head_type == "dpt" else LinearHead(config.patch_size, name=name)
            return to_pointmap(head(*maps), config.depth_mode, config.conf_mode)

        return pointmap(0), pointmap(1)


def head_layers(config: BackboneConfig) -> tuple[str, ...]:
    """The layers a head reads, in its order."""
    if config.head_type == "linear":
        return ("decoder.norm",)
    _, half, three_quarters, _ = head_depths(config.dec_depth)
    return "encoder.norm", f"decoder.{half - 1}.mlp", f"decoder.{three_quarters - 1}.mlp", "decoder.norm"
