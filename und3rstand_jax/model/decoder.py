"""DUSt3R's decoder: a stack of blocks for each view, each reading the other (Wang et al., CVPR 2024, section 3.1)."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from und3rstand_jax.model.attention import rotation
from und3rstand_jax.model.blocks import Arithmetic, DecoderBlock, run
from und3rstand_jax.model.captures import with_weights
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.layer_ids import DECODER_STEPS, stack_positions
from und3rstand_jax.model.output import Grids, ViewTokens, pair
from und3rstand_jax.model.stack import Streams, plan_runs, run_stack, stacked


class Decoder(Arithmetic):
    """Embedding and norm for both views, blocks for each."""

    config: BackboneConfig
    unroll: bool

    @nn.compact
    def __call__(self, encoded: ViewTokens, grids: Grids, needed: Collection[str]) -> dict[str, ViewTokens]:
        """Runs both views' tokens as far as the needed layers (ids `decoder.…`) require; returns those and `decoder.embed`."""
        config = self.config
        head_dim = config.dec_embed_dim // config.dec_num_heads
        turn1, turn2 = (rotation(grid, head_dim, config.rope_base) for grid in grids)
        block = DecoderBlock(**self.arithmetic, num_heads=config.dec_num_heads, mlp_ratio=config.mlp_ratio, parent=None)
        token = jnp.zeros((1, 1, config.dec_embed_dim))
        alone = rotation((1, 1), head_dim, config.rope_base)
        init = stacked(lambda key: block.init(key, token, token, alone, alone), config.dec_depth)
        blocks = (self.param("blocks1", init), self.param("blocks2", init))

        def run_block(params: Any, streams: Streams, until: str, captured: Collection[str]) -> dict[str, Streams]:
            # Both blocks of a pair read both views as they were before the pair.
            x1, x2 = streams
            steps1 = run(block, params[0], x1, x2, turn1, turn2, until, captured)
            steps2 = run(block, params[1], x2, x1, turn2, turn1, until, captured)
            return {step: (steps1[step], steps2[step]) for step in steps1}

        positions = stack_positions("decoder", needed)
        last = (config.dec_depth - 1, "mlp")
        if "decoder.norm" in needed:
            positions.add(last)
        embed = self.dense(config.dec_embed_dim, "embed")
        layers = {"decoder.embed": pair(embed(tokens) for tokens in encoded)}
        steps = with_weights(DECODER_STEPS, {step for _, step in positions})
        runs = plan_runs(steps, config.dec_depth, positions)
        kept = run_stack(run_block, blocks, layers["decoder.embed"], runs, self.unroll)
        layers |= {f"decoder.{index}.{step}": pair(streams) for (index, step), streams in kept.items()}
        if "decoder.norm" in needed:
            norm = self.layer_norm("norm")
            layers["decoder.norm"] = pair(norm(x) for x in kept[last])
        return layers
