"""DUSt3R's trunk: one encoder for all views, and two decoders, view 1's and the others', which read the other views' streams.

    images ─▶ Encoder ─▶ encoder.norm ─▶ Decoder ─▶ decoder.norm

Both modules run from their entry point as far as the needed sites require, and return at least those sites.
"""

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from und3rstand_jax.model.affine import SiteEdits, as_one_batch, edited_layer
from und3rstand_jax.model.attention import rotation
from und3rstand_jax.model.block_sites import BlockSites
from und3rstand_jax.model.blocks import Arithmetic, DecoderBlock, EncoderBlock, run_block
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.layer_ids import DECODER_STEPS, ENCODER_STEPS, stack_positions
from und3rstand_jax.model.module import Traced
from und3rstand_jax.model.output import Grids, ViewTokens
from und3rstand_jax.model.sites import with_insides
from und3rstand_jax.model.stack import BlockEdits, Params, Run, Streams, block_edits, plan_runs, run_stack, stack_entry, stacked

T = TypeVar("T")


class Encoder(nn.Module):
    """One ViT for all views: patch embedding, blocks and norm."""

    arithmetic: Arithmetic
    config: BackboneConfig
    unroll: bool
    remat: bool

    @nn.compact
    def __call__(self, inputs: Streams, grids: Grids, needed: Collection[str], edits: SiteEdits, since: str | None) -> dict[str, Traced]:
        """Runs all views as far as the needed sites (ids `encoder.…`) require, and returns those.

        Args:
            inputs: the views' images (B, H, W, 3) each, or their tokens after the layer `since`.
            grids: (rows, columns) of each view's tokens.
            needed: sites after `since`.
            edits: of sites after `since`.
            since: a layer of the blocks, or None to begin with the images.
        """
        config, arithmetic = self.config, self.arithmetic
        head_dim, batch = config.enc_embed_dim // config.enc_num_heads, len(inputs[0])
        same_size = len(set(grids)) == 1
        inputs = (jnp.concatenate(inputs),) if same_size else inputs
        rotations = [rotation(grid, head_dim, config.rope_base) for grid in (grids[:1] if same_size else grids)]
        block = EncoderBlock(arithmetic, config.enc_num_heads, config.mlp_ratio, parent=None)
        token, origin = jnp.zeros((1, 1, config.enc_embed_dim), jnp.float32), rotation((1, 1), head_dim, config.rope_base)
        blocks = self.param("blocks", stacked(lambda key: _init(block, key, token, origin), config.enc_depth))

        def run_all(params: Params, streams: Streams, before: Streams, run: Run, edits: BlockEdits) -> dict[str, Streams]:
            kept = [
                run_block(block, params, x, turn, sites=run.sites(edits, stream))
                for stream, (x, turn) in enumerate(zip(streams, rotations, strict=True))
            ]
            return {site: tuple(of_stream[site] for of_stream in kept) for site in kept[0]}

        tokens = inputs
        if since is None:
            width, patch = config.enc_embed_dim, (config.patch_size,) * 2
            embed = nn.Conv(
                width, patch, patch, padding="VALID", dtype=arithmetic.dtype, precision=arithmetic.precision, name="patch_embed"
            )
            tokens = tuple(embed(image.astype(arithmetic.dtype)).reshape(len(image), -1, width) for image in inputs)
        positions, last = stack_positions("encoder", needed), (config.enc_depth - 1, "mlp")
        if "encoder.norm" in needed and since != "encoder.{}.{}".format(*last):
            positions.add(last)
        of_blocks = block_edits("encoder", edits)
        if same_size:
            of_blocks = {
                index: {site: (as_one_batch(views, batch),) for site, views in sites.items()} for index, sites in of_blocks.items()
            }
        entry = stack_entry(since, ENCODER_STEPS)
        runs = plan_runs(with_insides(ENCODER_STEPS, {site for _, site in positions}), config.enc_depth, positions, of_blocks, entry)
        kept = run_stack(run_all, blocks, tokens, runs, self.unroll, of_blocks, remat=self.remat)
        layers = {f"encoder.{index}.{site}": streams for (index, site), streams in kept.items()}
        if "encoder.norm" in needed:
            norm = arithmetic.layer_norm("norm")
            layers["encoder.norm"] = tuple(norm(x) for x in kept.get(last, tokens))
        split = {layer: tuple(jnp.split(streams[0], len(grids)) if same_size else streams) for layer, streams in layers.items()}
        return edited_layer("encoder.norm", split, edits)


class Decoder(nn.Module):
    """Embedding and norm shared by the views, and two stacks of blocks: view 1's, and that of all others. Each reads the other views."""

    arithmetic: Arithmetic
    config: BackboneConfig
    unroll: bool
    remat: bool

    @nn.compact
    def __call__(
        self,
        inputs: ViewTokens,
        grids: Grids,
        needed: Collection[str],
        edits: SiteEdits,
        since: str | None,
        before: ViewTokens | None,
    ) -> dict[str, Traced]:
        """Runs the views' tokens as far as the needed sites (ids `decoder.…`) require; returns those, and `decoder.embed` if computed.

        Args:
            inputs: tokens of `encoder.norm`, or those after the layer `since`.
            grids: (rows, columns) of each view's tokens.
            needed: sites after `since`.
            edits: of sites after `since`.
            since: `decoder.embed` or a layer of the blocks, or None to begin with the encoder's tokens.
            before: the tokens before the block that `since` is in the middle of.
        """
        config, arithmetic = self.config, self.arithmetic
        head_dim = config.dec_embed_dim // config.dec_num_heads
        turns = [rotation(grid, head_dim, config.rope_base) for grid in grids]
        other_turns = [_others(turns, view, 0) for view in range(len(grids))]
        block = DecoderBlock(arithmetic, config.dec_num_heads, config.mlp_ratio, parent=None)
        token, origin = jnp.zeros((1, 1, config.dec_embed_dim), jnp.float32), rotation((1, 1), head_dim, config.rope_base)
        init = stacked(lambda key: _init(block, key, token, token, origin, origin), config.dec_depth)
        blocks = (self.param("blocks1", init), self.param("blocks2", init))

        def run_all(params: tuple[Params, Params], streams: Streams, before: Streams, run: Run, edits: BlockEdits) -> dict[str, Streams]:
            # The blocks of all views read the views as they were before any block.
            kept = [
                run_block(
                    block, params[min(view, 1)], x, _others(before, view, 1), turns[view], other_turns[view], sites=run.sites(edits, view)
                )
                for view, x in enumerate(streams)
            ]
            return {site: tuple(of_view[site] for of_view in kept) for site in kept[0]}

        positions, last = stack_positions("decoder", needed), (config.dec_depth - 1, "mlp")
        if "decoder.norm" in needed and since != "decoder.{}.{}".format(*last):
            positions.add(last)
        layers: dict[str, Traced] = {}
        if since is None:
            embed = arithmetic.dense(config.dec_embed_dim, "embed")
            layers = edited_layer("decoder.embed", {"decoder.embed": tuple(embed(tokens) for tokens in inputs)}, edits)
        tokens = inputs if since is not None else layers["decoder.embed"]
        of_blocks, entry = block_edits("decoder", edits), stack_entry(since, DECODER_STEPS)
        runs = plan_runs(with_insides(DECODER_STEPS, {site for _, site in positions}), config.dec_depth, positions, of_blocks, entry)
        kept = run_stack(run_all, blocks, tokens, runs, self.unroll, of_blocks, before, self.remat)
        layers |= {f"decoder.{index}.{site}": tuple(streams) for (index, site), streams in kept.items()}
        if "decoder.norm" in needed:
            norm = arithmetic.layer_norm("norm")
            layers["decoder.norm"] = tuple(norm(x) for x in kept.get(last, tokens))
        return edited_layer("decoder.norm", layers, edits)


def _others(of_views: Sequence[T], view: int, axis: int) -> T:
    """What a view's cross-attention reads: all other views' tokens, or their rotations, concatenated along the axis of tokens."""
    others = [of_view for number, of_view in enumerate(of_views) if number != view]
    return others[0] if len(others) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *others)


def _init(block: EncoderBlock | DecoderBlock, key: Array, *inputs: Any) -> Any:
    return block.init(key, *inputs, BlockSites())
