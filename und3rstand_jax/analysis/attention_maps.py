"""The attention between the views of one set, as far as it fits into memory: all of it from one pass, or pooled, a block at a time.

    attention that reads other views alone ─▶ the weights of all blocks, captured in one pass
    attention that reads all views ─▶ block after block, each from where the last one ended ─▶ patches alone, pooled to cells

In VGGT-1B, four views of 518×518 have 46 GB of weights: one block's are in memory at once, and all blocks' only after pooling.
"""

from collections.abc import Iterator
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Float32, Int

from und3rstand_jax.analysis.attention_keys import keys_of
from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.view_set import Attention
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import Block, ModelConfig
from und3rstand_jax.model.output import Activation, BackboneOutput, Grid, Grids
from und3rstand_jax.model.sites import WEIGHTS, weights_in_parts
from und3rstand_jax.model.start import start_layers, token_grids
from und3rstand_jax.support.progress import with_progress

MOST_HELD = 2**30
"""The most bytes that all pooled weights may take together."""

Weights: TypeAlias = Float[np.ndarray, "heads _N _M"]
Views: TypeAlias = tuple[Float[np.ndarray, "B _H _W 3"], ...]


def comes_in_one_pass(config: ModelConfig) -> bool:
    """Whether the weights of all blocks are captured together: true if attention between the views reads only the others' patches."""
    return all(config.reads(block.across) == "others" and not config.special_tokens(block.across) for block in config.blocks)


def weights_ids(config: ModelConfig) -> list[str]:
    """Ids of the weights between the views, block by block."""
    return [f"{block.across}.{WEIGHTS}" for block in config.blocks]


def pool_of(config: ModelConfig, grids: Grids) -> int:
    """How many rows and columns of patches a map cell has: 1 where all maps come in one pass, else the fewest that fit `MOST_HELD`."""
    if comes_in_one_pass(config):
        return 1
    pools = range(1, max(max(grid) for grid in grids) + 1)
    return next((pool for pool in pools if held_bytes(config, grids, pool) <= MOST_HELD), pools[-1])


def held_bytes(config: ModelConfig, grids: Grids, pool: int) -> int:
    """Bytes of the maps of all blocks, in float32."""
    cells = [rows * columns for rows, columns in (pooled_grid(grid, pool) for grid in grids)]
    reads_own = config.reads(config.blocks[0].across) == "all"
    pairs = sum(own * (sum(cells) - (0 if reads_own else own)) for own in cells)
    return 4 * len(config.blocks) * config.block_heads * pairs


def captured_maps(features: BackboneOutput, config: ModelConfig) -> tuple[Attention, ...]:
    """The maps of all blocks, from one pass."""
    return tuple(
        Attention.to_others(block, tuple(np.asarray(weights, np.float32)[0] for weights in features[name]))
        for block, name in enumerate(weights_ids(config))
    )


def attention_maps(model: Backbone, inputs: Inputs, pool: int, progress: bool = False) -> tuple[Attention, ...]:
    """For every block, the weights from each view's patches to all patches that they read, pooled.

    Args:
        model: a backbone.
        inputs: the views.
        pool: from `pool_of`.
        progress: whether a terminal shows a progress bar.
    """
    config, grids = model.config, token_grids(inputs.sizes, model.config)
    found = []
    blocks = with_progress(weights_by_block(model, inputs.views), "attention", len(config.blocks), "block", progress)
    for number, (block, of_heads) in enumerate(blocks):
        by_view, read = [], []
        for view, grid in enumerate(grids):
            keys = keys_of(config, block.across, grids, view)
            pooled = []
            for weights in of_heads:
                own = np.asarray(weights[view], np.float32)[0, :, keys.special :]
                parts = [pool_attention(own[..., patches], grid, grids[other], pool) for other, patches in keys.patches.items()]
                pooled.append(np.concatenate(parts, axis=-1))
            by_view.append(np.concatenate(pooled))
            read.append(tuple(other + 1 for other in keys.patches))
        found.append(Attention(number, tuple(by_view), tuple(read)))
    return tuple(found)


def weights_by_block(model: Backbone, views: Views) -> Iterator[tuple[Block, list[Activation]]]:
    """Each block's weights of one set, as captured, of some heads and then the next; each pass begins where the previous one ended."""
    start: BackboneOutput | None = None
    grids = token_grids(tuple((view.shape[1], view.shape[2]) for view in views), model.config)
    for block in model.config.blocks:
        names = weights_in_parts(block.across, model.config, grids, batch=1)
        after = start_layers(block.steps[-1], model.config, head=False)
        given = views if start is None else ()
        output = jax.block_until_ready(model(*given, capture=(*names, *after), head=False, start=start))
        start = BackboneOutput({layer: output[layer] for layer in after}, output.image_sizes)
        yield block, [output[name] for name in names]


def pooled_grid(grid: Grid, pool: int) -> Grid:
    """Rows and columns of cells of `pool`×`pool` tokens."""
    return -(-grid[0] // pool), -(-grid[1] // pool)


def tokens_per_cell(grid: Grid, pool: int) -> Int[np.ndarray, "rows columns"]:
    """How many tokens each cell of `pool`×`pool` has: fewer at the far edges where the grid does not divide evenly."""
    return np.outer(*(np.minimum(pool, length - np.arange(0, length, pool)) for length in grid))


def pool_attention(weights: Weights, queries: Grid, keys: Grid, pool: int) -> Float32[np.ndarray, "heads n m"]:
    """Attention between cells of `pool`×`pool` tokens (fewer at the far edges). A row's sum is the mean of its tokens' row sums."""
    heads = weights.shape[0]
    by_place = weights.reshape(heads, *queries, *keys)
    for axis, length in ((3, keys[0]), (4, keys[1]), (1, queries[0]), (2, queries[1])):
        by_place = np.add.reduceat(by_place, np.arange(0, length, pool), axis=axis, dtype=np.float32)
    by_place /= tokens_per_cell(queries, pool)[None, :, :, None, None]
    rows, columns = pooled_grid(queries, pool)
    return by_place.reshape(heads, rows * columns, -1)
