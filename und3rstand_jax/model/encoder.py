"""DUSt3R's encoder: one ViT for both views (Wang et al., CVPR 2024, section 3.1)."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from und3rstand_jax.model.attention import Rotation, rotation
from und3rstand_jax.model.blocks import Arithmetic, EncoderBlock, Steps, run
from und3rstand_jax.model.captures import with_weights
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.layer_ids import ENCODER_STEPS, stack_positions
from und3rstand_jax.model.output import ViewTokens, pair
from und3rstand_jax.model.stack import Streams, plan_runs, run_stack, stacked


class Encoder(Arithmetic):
    """Patch embedding, blocks and norm."""

    config: BackboneConfig
    unroll: bool

    @nn.compact
    def __call__(self, views: Streams, needed: Collection[str]) -> dict[str, ViewTokens]:
        """Runs both views (B, H, W, 3) as far as the needed layers (ids `encoder.…`) require, and returns those."""
        config = self.config
        together = views[0].shape == views[1].shape
        images = (jnp.concatenate(views),) if together else views
        rotations = [_rotation(image, config) for image in images]
        block = EncoderBlock(**self.arithmetic, num_heads=config.enc_num_heads, mlp_ratio=config.mlp_ratio, parent=None)
        token = jnp.zeros((1, 1, config.enc_embed_dim))
        alone = rotation((1, 1), config.enc_embed_dim // config.enc_num_heads, config.rope_base)
        blocks = self.param("blocks", stacked(lambda key: block.init(key, token, alone), config.enc_depth))

        def run_block(params: Any, streams: Streams, until: str, captured: Collection[str]) -> dict[str, Streams]:
            steps: list[Steps] = [run(block, params, x, turn, until, captured) for x, turn in zip(streams, rotations, strict=True)]
            return {step: tuple(s[step] for s in steps) for step in steps[0]}

        positions = stack_positions("encoder", needed)
        last = (config.enc_depth - 1, "mlp")
        if "encoder.norm" in needed:
            positions.add(last)
        patches = self._patch_embedding()
        tokens = tuple(patches(image.astype(self.dtype)).reshape(len(image), -1, config.enc_embed_dim) for image in images)
        steps = with_weights(ENCODER_STEPS, {step for _, step in positions})
        runs = plan_runs(steps, config.enc_depth, positions)
        kept = run_stack(run_block, blocks, tokens, runs, self.unroll)
        layers = {f"encoder.{index}.{step}": streams for (index, step), streams in kept.items()}
        if "encoder.norm" in needed:
            norm = self.layer_norm("norm")
            layers["encoder.norm"] = tuple(norm(x) for x in kept[last])
        return {layer: pair(jnp.split(streams[0], 2) if together else streams) for layer, streams in layers.items()}

    def _patch_embedding(self) -> nn.Conv:
        size = (self.config.patch_size, self.config.patch_size)
        return nn.Conv(
            self.config.enc_embed_dim, size, size, padding="VALID", dtype=self.dtype, precision=self.precision, name="patch_embed"
        )


def _rotation(image: Float[Array, "B H W 3"], config: BackboneConfig) -> Rotation:
    grid = (image.shape[1] // config.patch_size, image.shape[2] // config.patch_size)
    return rotation(grid, config.enc_embed_dim // config.enc_num_heads, config.rope_base)
