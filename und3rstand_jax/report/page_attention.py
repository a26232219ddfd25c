"""Attention on the page: pooled over neighbouring tokens if it would take too much space, and quantised."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8

from und3rstand_jax.analysis.head_use import SelfAttention
from und3rstand_jax.analysis.pair import Attention
from und3rstand_jax.analysis.true_place_attention import BothPlaces, TruePlaces
from und3rstand_jax.model.output import Grid, Grids
from und3rstand_jax.report.page_arrays import PackedArray, pack, packed_size

_POOLS = (1, 2, 3, 4, 6, 8, 12, 16)
_LEVELS = (255, 63, 31, 15)
_EXPECTED_COMPRESSION = 4.0


@dataclasses.dataclass(frozen=True)
class PackedAttention:
    """Attention of all blocks, ready for the page.

    Attributes:
        arrays: `weights1` (blocks, heads, n1, n2) and `peaks1` (blocks, heads, n1): the queries of view 1; `weights2`, `peaks2`: those
            of view 2. A weight is peak · (stored / levels)². Of self-attention their names begin with `self_`.
        pool: side of the square of tokens pooled into one cell: summed over keys, averaged over queries.
        levels: the stored value of each query's largest weight.
        grids: rows and columns of each view after pooling.
        spans: the image's height and width in cells: fractions where the grid does not divide evenly, so that the last cells are cut off.
        blocks: numbers of the blocks, in the order of the arrays.
        heads: per block.
    """

    arrays: tuple[PackedArray, ...]
    pool: int
    levels: int
    grids: Grids
    spans: tuple[tuple[float, float], tuple[float, float]]
    blocks: tuple[int, ...]
    heads: int

    @property
    def info(self) -> dict[str, object]:
        """What the page's scripts need besides the arrays, as JSON values."""
        return {name: getattr(self, name) for name in ("pool", "levels", "grids", "spans", "blocks", "heads")}


def pack_attention(attention: Sequence[Attention] | Sequence[SelfAttention], grids: Grids, budget: int) -> PackedAttention | None:
    """Packs as finely as `budget` characters allow: first fewer levels, then coarser grids. The coarsest is accepted at any size.

    Args:
        attention: of every block; each view's over the other view's tokens, or over its own.
        grids: each view's tokens.
        budget: characters on the page.

    Returns:
        None without attention.
    """
    if not attention:
        return None
    heads = attention[0].from_view1.shape[0]
    prefix, turn = ("self_", 1) if isinstance(attention[0], SelfAttention) else ("", -1)
    (rows1, columns1), (rows2, columns2) = grids
    for pool in _POOLS:
        coarse = pooled_grid(grids[0], pool), pooled_grid(grids[1], pool)
        cells = [rows * columns for rows, columns in coarse]
        weights = len(attention) * heads * sum(own * other for own, other in zip(cells, cells[::turn], strict=True))
        if pool != _POOLS[-1] and weights / _EXPECTED_COMPRESSION > budget:
            continue
        # A block at a time: all of them in float32 would take gigabytes at full size.
        pooled = (
            np.stack([pool_attention(block.from_view1, grids[0], grids[::turn][0], pool) for block in attention]),
            np.stack([pool_attention(block.from_view2, grids[1], grids[::turn][1], pool) for block in attention]),
        )
        for levels in _LEVELS:
            arrays: list[PackedArray] = []
            for view, of_view in enumerate(pooled, start=1):
                quantised, peaks = quantise_weights(of_view, levels)
                arrays += [pack(f"{prefix}weights{view}", quantised), pack(f"{prefix}peaks{view}", peaks)]
            packed = PackedAttention(
                arrays=tuple(arrays),
                pool=pool,
                levels=levels,
                grids=coarse,
                spans=((rows1 / pool, columns1 / pool), (rows2 / pool, columns2 / pool)),
                blocks=tuple(block.block for block in attention),
                heads=heads,
            )
            if packed_size(arrays) <= budget:
                return packed
    return packed


def pool_attention(weights: Float[np.ndarray, "heads N M"], queries: Grid, keys: Grid, pool: int) -> Float32[np.ndarray, "heads n m"]:
    """Attention between cells of `pool`×`pool` tokens (fewer at the far edges). Rows still sum to 1."""
    heads = weights.shape[0]
    by_place = weights.reshape(heads, *queries, *keys)
    for axis, length in ((3, keys[0]), (4, keys[1]), (1, queries[0]), (2, queries[1])):
        by_place = np.add.reduceat(by_place, np.arange(0, length, pool), axis=axis, dtype=np.float32)
    cells = [np.diff(np.append(np.arange(0, length, pool), length)) for length in queries]
    by_place /= np.outer(*cells)[None, :, :, None, None]
    rows, columns = pooled_grid(queries, pool)
    return by_place.reshape(heads, rows * columns, -1)


def pooled_marks(places: BothPlaces, grids: Grids, pool: int) -> list[dict[str, list[int]]]:
    """Of each view, in cells of `pool`×`pool` tokens: those that the other view does not see, and where it sees the others.

    Returns:
        `hidden`: numbers of cells of which the other view sees less than half of the tokens; `places`: the other view's cell in which
        the true place of the token in the cell's middle lies, -1 where it is not seen.
    """
    return [_marks(place, own, other, pool) for place, own, other in zip(places, grids, (grids[1], grids[0]), strict=True)]


def _marks(place: TruePlaces, own: Grid, other: Grid, pool: int) -> dict[str, list[int]]:
    firsts = [np.arange(0, length, pool) for length in own]
    seen = place.seen.reshape(own).astype(float)
    counts = np.outer(*(np.diff(np.append(first, length)) for first, length in zip(firsts, own, strict=True)))
    share = np.add.reduceat(np.add.reduceat(seen, firsts[0], axis=0), firsts[1], axis=1) / counts
    middles = np.ix_(*(np.minimum(first + pool // 2, length - 1) for first, length in zip(firsts, own, strict=True)))
    token = place.token.reshape(own)[middles].ravel()
    row, column = np.divmod(np.maximum(token, 0), other[1])
    cells = np.where(token < 0, -1, row // pool * pooled_grid(other, pool)[1] + column // pool)
    return {"hidden": np.flatnonzero(share.ravel() < 0.5).tolist(), "places": cells.tolist()}


def pooled_grid(grid: Grid, pool: int) -> Grid:
    """Rows and columns of cells of `pool`×`pool` tokens."""
    return -(-grid[0] // pool), -(-grid[1] // pool)


def quantise_weights(weights: Float[np.ndarray, "*n m"], levels: int) -> tuple[UInt8[np.ndarray, "*n m"], Float32[np.ndarray, "*n"]]:
    """Quantises each row of attention weights relative to its largest.

    The square root of weight / peak is stored, in `levels` steps: it resolves small weights, of which a row has many. Restored weights
    are within peak · (1/levels + 1/(4·levels²)) of the originals.

    Returns:
        The quantised weights, and the peak of each row.
    """
    peaks = np.maximum(weights.max(-1), np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(np.sqrt(np.clip(weights / peaks[..., None], 0, 1)) * levels).astype(np.uint8), peaks
