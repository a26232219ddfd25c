"""Attention on the page: pooled over neighbouring tokens if it would take too much space, and quantised."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8

from und3rstand_jax.analysis.attention_maps import pool_attention, pooled_grid, tokens_per_cell
from und3rstand_jax.analysis.true_place_attention import TruePlaces
from und3rstand_jax.analysis.view_set import Attention
from und3rstand_jax.model.output import Grid, Grids
from und3rstand_jax.report.page_arrays import PackedArray, pack, packed_size

_POOLS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
_LEVELS = (255, 63, 31, 15)
_EXPECTED_COMPRESSION = 4.0


@dataclasses.dataclass(frozen=True)
class PackedAttention:
    """Attention of all blocks, ready for the page.

    Attributes:
        arrays: for every view v, whose tokens are the queries, `weights<v>` (blocks, heads, n, m) and `peaks<v>` (blocks, heads, n). A
            weight is peak · (stored / levels)², times the share of a full cell's tokens that its key's cell has: steps are as fine for the
            cells cut off at the far edges, which are coloured by weight per token. The names for self-attention begin with `self_`.
        keys: for every view, the numbers of the views whose cells are its keys, from 1: one view's cells after another's.
        pool: side of the square of tokens pooled into one cell: summed over keys, averaged over queries.
        levels: the stored value of each query's largest weight.
        grids: rows and columns of each view after pooling.
        spans: the image's height and width in cells: fractions where the grid does not divide evenly, so that the last cells are cut off.
        blocks: numbers of the blocks, in the order of the arrays.
        heads: number of heads per block.
    """

    arrays: tuple[PackedArray, ...]
    keys: tuple[tuple[int, ...], ...]
    pool: int
    levels: int
    grids: Grids
    spans: tuple[tuple[float, float], ...]
    blocks: tuple[int, ...]
    heads: int

    @property
    def info(self) -> dict[str, object]:
        """What the page's scripts need besides the arrays, as JSON values."""
        return {name: getattr(self, name) for name in ("keys", "pool", "levels", "grids", "spans", "blocks", "heads")}


def pack_attention(attention: Sequence[Attention], grids: Grids, budget: int, prefix: str = "", pooled: int = 1) -> PackedAttention | None:
    """Packs as finely as `budget` characters allow: first fewer levels, then coarser grids. The coarsest is accepted at any size.

    Args:
        attention: the attention of every block, each with the same heads and keys.
        grids: each view's grid of tokens.
        budget: characters on the page.
        prefix: prefix of the arrays' names.
        pooled: side, in tokens, of the cells between which the attention is given.

    Returns:
        None without attention.
    """
    if not attention:
        return None
    heads, keys = len(attention[0].weights[0]), attention[0].keys
    fine = tuple(pooled_grid(grid, pooled) for grid in grids)
    for pool in _POOLS:
        coarse = tuple(pooled_grid(grid, pool) for grid in fine)
        cells = [rows * columns for rows, columns in coarse]
        pairs = sum(own * sum(cells[key - 1] for key in of_view) for own, of_view in zip(cells, keys, strict=True))
        if pool != _POOLS[-1] and len(attention) * heads * pairs / _EXPECTED_COMPRESSION > budget:
            continue
        side = pooled * pool
        # Cells cut off at the far edges are stored as if they were full.
        fills = [tokens_per_cell(grid, side).ravel() / side**2 for grid in grids]
        of_keys = [np.concatenate([fills[key - 1] for key in of_view], dtype=np.float32) for of_view in keys]
        of_views = [_pooled(attention, view, fine, pool) / of_key for view, of_key in enumerate(of_keys, start=1)]
        for levels in _LEVELS:
            arrays: list[PackedArray] = []
            for view, of_view in enumerate(of_views, start=1):
                quantised, peaks = quantise_weights(of_view, levels)
                arrays += [pack(f"{prefix}weights{view}", quantised), pack(f"{prefix}peaks{view}", peaks)]
            packed = PackedAttention(
                arrays=tuple(arrays),
                keys=keys,
                pool=side,
                levels=levels,
                grids=coarse,
                spans=tuple((rows / side, columns / side) for rows, columns in grids),
                blocks=tuple(block.block for block in attention),
                heads=heads,
            )
            if packed_size(arrays) <= budget:
                return packed
    return packed


def _pooled(attention: Sequence[Attention], view: int, grids: Grids, pool: int) -> Float32[np.ndarray, "blocks heads n m"]:
    """A view's weights in every block, pooled one block at a time: all of them in float32 would take gigabytes at full size."""
    own, others = grids[view - 1], attention[0].keys[view - 1]

    def of_block(block: Attention) -> np.ndarray:
        parts = [pool_attention(block.between(view, other, grids), own, grids[other - 1], pool) for other in others]
        return np.concatenate(parts, axis=-1)

    return np.stack([of_block(block) for block in attention])


def pooled_marks(places: Sequence[Mapping[int, TruePlaces]], grids: Grids, pool: int) -> list[dict[str, object]]:
    """For each view, in cells of `pool`×`pool` tokens: those that no other view sees, and where the others see the rest.

    Args:
        places: for each view, its tokens' places in the others, by their numbers, as from `set_true_places`.
        grids: each view's grid of tokens.
        pool: side of a cell, in tokens.

    Returns:
        `hidden`: numbers of cells of which no other view sees half of the tokens; `places`: by the other view's number, its cell with the
        true place of the token in the cell's middle, -1 where it is not seen.
    """
    return [_marks(of_view, own, grids, pool) for of_view, own in zip(places, grids, strict=True)]


def _marks(places: Mapping[int, TruePlaces], own: Grid, grids: Grids, pool: int) -> dict[str, object]:
    shares = np.stack([_seen_share(place, own, pool) for place in places.values()])
    cells = {str(other): _cells(place, own, grids[other - 1], pool) for other, place in places.items()}
    return {"hidden": np.flatnonzero(shares.max(axis=0) < 0.5).tolist(), "places": cells}


def _seen_share(place: TruePlaces, own: Grid, pool: int) -> Float[np.ndarray, " cells"]:
    """For each cell, the share of its tokens that the other view sees."""
    firsts = [np.arange(0, length, pool) for length in own]
    seen = place.seen.reshape(own).astype(float)
    return (np.add.reduceat(np.add.reduceat(seen, firsts[0], axis=0), firsts[1], axis=1) / tokens_per_cell(own, pool)).ravel()


def _cells(place: TruePlaces, own: Grid, other: Grid, pool: int) -> list[int]:
    """For each cell, the other view's cell with the true place of the token in its middle; -1 where it is not seen."""
    firsts = [np.arange(0, length, pool) for length in own]
    middles = np.ix_(*(np.minimum(first + pool // 2, length - 1) for first, length in zip(firsts, own, strict=True)))
    token = place.token.reshape(own)[middles].ravel()
    row, column = np.divmod(np.maximum(token, 0), other[1])
    return np.where(token < 0, -1, row // pool * pooled_grid(other, pool)[1] + column // pool).tolist()


def quantise_weights(weights: Float[np.ndarray, "*n m"], levels: int) -> tuple[UInt8[np.ndarray, "*n m"], Float32[np.ndarray, "*n"]]:
    """Quantises each row of attention weights relative to its largest.

    The square root of weight / peak is stored, in `levels` steps: it resolves small weights, of which a row has many. Restored weights
    differ by at most peak · (1/levels + 1/(4·levels²)) from the originals.

    Returns:
        The quantised weights, and the peak of each row.
    """
    peaks = np.maximum(weights.max(-1), np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(np.sqrt(np.clip(weights / peaks[..., None], 0, 1)) * levels).astype(np.uint8), peaks
