"""DUSt3R as a pure function of its parameters and two views (Wang et al., CVPR 2024, section 3.1).

    (params, view1, view2) -> (pointmaps, activations)

`DUSt3R(config).apply({"params": params}, view1, view2, capture=…, head=…)` runs exactly as far as the captured layers
and the heads need; `capture` and `head` are static under `jit`.
"""

from collections.abc import Collection, Iterable, Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from und3rstand_jax.model.attention import AttentionImplementation, rotation
from und3rstand_jax.model.blocks import Arithmetic, DecoderBlock, EncoderBlock, Steps, apply_block
from und3rstand_jax.model.captures import select_captures, with_weights
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.heads import DPTHead, LinearHead, Pointmap, head_depths, to_pointmap
from und3rstand_jax.model.images import as_view
from und3rstand_jax.model.layer_ids import DECODER_STEPS, ENCODER_STEPS, stack_positions
from und3rstand_jax.model.output import BackboneOutput, Grids, ViewTokens, pair
from und3rstand_jax.model.stack import Params, Streams, plan_runs, run_stack, stacked
from und3rstand_jax.support.errors import ImageError, OptionError

Traced = tuple[Float[Array, "B ..."], Float[Array, "B ..."]]
"""What one id captures, of both views, while the model runs: tokens (B, N, C), or attention weights (B, heads, N, M)."""


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
    """

    config: BackboneConfig
    dtype: DTypeLike = jnp.float32
    precision: lax.Precision | None = None
    attention: AttentionImplementation = "auto"
    unroll: bool = False

    @nn.compact
    def __call__(self, view1: ArrayLike, view2: ArrayLike, capture: str | Iterable[str] = (), head: bool = True) -> BackboneOutput:
        """Runs both views through the model.

        Args:
            view1, view2: RGB in [-1, 1], (B, H, W, 3) or (B, 3, H, W); sides are multiples of the patch size (16), the
                views' sizes may differ.
            capture: layer patterns, see `und3rstand_jax.model.layer_ids`; the output holds exactly the layers they match. Patterns
                of attention weights (`decoder.*.cross_attn.weights`, `decoder.3.cross_attn.weights:0-3`), see
                `und3rstand_jax.model.captures`, add 4·B·heads·N·M bytes for each view and block.
            head: whether to run the heads.

        Returns:
            The captured layers' tokens and attention weights and, with `head`, both pointmaps in view 1's frame.

        Raises:
            LayerError: a pattern matches nothing.
            ImageError: a view is not a batch of images, or the views' batches differ in size.
            OptionError: there is no head to run.
        """
        config = self.config
        if head and config.head_type is None:
            raise OptionError("this backbone has no head (a trunk such as CroCo's); call it with head=False")
        views = (as_view(view1, config.patch_size, "view1"), as_view(view2, config.patch_size, "view2"))
        if len(views[0]) != len(views[1]):
            raise ImageError(f"view1 holds {len(views[0])} images and view2 {len(views[1])}; pairs need as many of each")
        captured = select_captures(capture, config)
        needed = {*captured, *(head_layers(config) if head else ())}
        if self.is_initializing():
            needed |= set(config.layer_ids)

        sizes = pair((view.shape[1], view.shape[2]) for view in views)
        grids = pair((height // config.patch_size, width // config.patch_size) for height, width in sizes)
        layers = self._trunk(views, grids, needed)
        pred1, pred2 = (self._pointmap(layers, grids, view) if head else None for view in (0, 1))
        return BackboneOutput({layer: layers[layer] for layer in captured}, sizes, pred1, pred2)

    def _trunk(self, views: Streams, grids: Grids, needed: set[str]) -> dict[str, Traced]:
        """At least the needed layers, and nothing after the last of them."""
        if not needed:
            return {}
        dtype = jnp.dtype(self.dtype)
        exact = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
        arithmetic = Arithmetic(dtype, exact if self.precision is None else self.precision, self.attention)
        needs_decoder = any(layer.startswith("decoder.") for layer in needed)
        encoder = Encoder(arithmetic, self.config, self.unroll, name="encoder")
        layers = encoder(views, needed | {"encoder.norm"} if needs_decoder else needed)
        if needs_decoder:
            decoder = Decoder(arithmetic, self.config, self.unroll, name="decoder")
            layers |= decoder(layers["encoder.norm"], grids, needed)
        return layers

    def _pointmap(self, layers: Mapping[str, Traced], grids: Grids, view: int) -> Pointmap:
        """The pointmap that a view's own head reads from its token maps."""
        config = self.config
        maps = [layers[layer][view].reshape(-1, *grids[view], config.layer_width(layer)) for layer in head_layers(config)]
        name = f"head{view + 1}"
        head = DPTHead(name=name) if config.head_type == "dpt" else LinearHead(config.patch_size, name=name)
        return to_pointmap(head(*maps), config.depth_mode, config.conf_mode)


def head_layers(config: BackboneConfig) -> tuple[str, ...]:
    """The layers a head reads, in its order."""
    if config.head_type == "linear":
        return ("decoder.norm",)
    _, half, three_quarters, _ = head_depths(config.dec_depth)
    return "encoder.norm", f"decoder.{half - 1}.mlp", f"decoder.{three_quarters - 1}.mlp", "decoder.norm"


class Encoder(nn.Module):
    """One ViT for both views: patch embedding, blocks and norm."""

    arithmetic: Arithmetic
    config: BackboneConfig
    unroll: bool

    @nn.compact
    def __call__(self, views: Streams, needed: Collection[str]) -> dict[str, Traced]:
        """Runs both views (B, H, W, 3) as far as the needed layers (ids `encoder.…`) require, and returns those."""
        config, arithmetic, patch = self.config, self.arithmetic, self.config.patch_size
        head_dim = config.enc_embed_dim // config.enc_num_heads
        same_size = views[0].shape == views[1].shape
        images = (jnp.concatenate(views),) if same_size else views
        rotations = [rotation((image.shape[1] // patch, image.shape[2] // patch), head_dim, config.rope_base) for image in images]
        block = EncoderBlock(arithmetic, config.enc_num_heads, config.mlp_ratio, parent=None)
        token, origin = jnp.zeros((1, 1, config.enc_embed_dim), jnp.float32), rotation((1, 1), head_dim, config.rope_base)
        blocks = self.param("blocks", stacked(lambda key: block.init(key, token, origin), config.enc_depth))

        def run_block(params: Params, streams: Streams, until: str, captured: Collection[str]) -> dict[str, Streams]:
            steps: list[Steps] = [
                apply_block(block, params, x, turn, until=until, captured=captured) for x, turn in zip(streams, rotations, strict=True)
            ]
            return {step: tuple(s[step] for s in steps) for step in steps[0]}

        positions = stack_positions("encoder", needed)
        last = (config.enc_depth - 1, "mlp")
        if "encoder.norm" in needed:
            positions.add(last)
        embed = nn.Conv(
            config.enc_embed_dim,
            (patch, patch),
            (patch, patch),
            padding="VALID",
            dtype=arithmetic.dtype,
            precision=arithmetic.precision,
            name="patch_embed",
        )
        tokens = tuple(embed(image.astype(arithmetic.dtype)).reshape(len(image), -1, config.enc_embed_dim) for image in images)
        steps = with_weights(ENCODER_STEPS, {step for _, step in positions})
        kept = run_stack(run_block, blocks, tokens, plan_runs(steps, config.enc_depth, positions), self.unroll)
        layers = {f"encoder.{index}.{step}": streams for (index, step), streams in kept.items()}
        if "encoder.norm" in needed:
            norm = arithmetic.layer_norm("norm")
            layers["encoder.norm"] = tuple(norm(x) for x in kept[last])
        return {layer: pair(jnp.split(streams[0], 2) if same_size else streams) for layer, streams in layers.items()}


class Decoder(nn.Module):
    """Embedding and norm shared by the views, and a stack of blocks for each view, which reads the other view."""

    arithmetic: Arithmetic
    config: BackboneConfig
    unroll: bool

    @nn.compact
    def __call__(self, encoded: ViewTokens, grids: Grids, needed: Collection[str]) -> dict[str, Traced]:
        """Runs both views' tokens as far as the needed layers (ids `decoder.…`) require; returns those and `decoder.embed`."""
        config, arithmetic = self.config, self.arithmetic
        head_dim = config.dec_embed_dim // config.dec_num_heads
        turn1, turn2 = (rotation(grid, head_dim, config.rope_base) for grid in grids)
        block = DecoderBlock(arithmetic, config.dec_num_heads, config.mlp_ratio, parent=None)
        token, origin = jnp.zeros((1, 1, config.dec_embed_dim), jnp.float32), rotation((1, 1), head_dim, config.rope_base)
        init = stacked(lambda key: block.init(key, token, token, origin, origin), config.dec_depth)
        blocks = (self.param("blocks1", init), self.param("blocks2", init))

        def run_block(params: tuple[Params, Params], streams: Streams, until: str, captured: Collection[str]) -> dict[str, Streams]:
            # The blocks of both views read the views as they were before either block.
            x1, x2 = streams
            steps1 = apply_block(block, params[0], x1, x2, turn1, turn2, until=until, captured=captured)
            steps2 = apply_block(block, params[1], x2, x1, turn2, turn1, until=until, captured=captured)
            return {step: (steps1[step], steps2[step]) for step in steps1}

        positions = stack_positions("decoder", needed)
        last = (config.dec_depth - 1, "mlp")
        if "decoder.norm" in needed:
            positions.add(last)
        embed = arithmetic.dense(config.dec_embed_dim, "embed")
        layers: dict[str, Traced] = {"decoder.embed": pair(embed(tokens) for tokens in encoded)}
        steps = with_weights(DECODER_STEPS, {step for _, step in positions})
        kept = run_stack(run_block, blocks, layers["decoder.embed"], plan_runs(steps, config.dec_depth, positions), self.unroll)
        layers |= {f"decoder.{index}.{step}": pair(streams) for (index, step), streams in kept.items()}
        if "decoder.norm" in needed:
            norm = arithmetic.layer_norm("norm")
            layers["decoder.norm"] = pair(norm(x) for x in kept[last])
        return layers
