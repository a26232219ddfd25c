"""How the page carries arrays: integers, their bytes sorted so that gzip does well, gzip, base64.

Cross-attention on the page: pooled over neighbouring tokens where need be, and quantised.
"""

import base64
import dataclasses
import gzip
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from und3rstand_jax.analysis.pair import Attention

_DTYPES = ("uint8", "int16", "float32")


@dataclasses.dataclass(frozen=True)
class PackedArray:
    """An array as the page carries it.

    Attributes:
        name: by which the page asks for it.
        spec: name, dtype, shape and whether differences along the last axis were stored; plain JSON values.
        text: base64 of gzip of the bytes: first the low byte of every element, then the next, ... (little-endian).
    """

    name: str
    spec: dict[str, Any]
    text: str


def pack(name: str, array: np.ndarray, differences: bool = False) -> PackedArray:
    """Packs an array of uint8, int16 or float32, exactly.

    `differences` stores each element less its neighbour before it on the last axis, modulo the type's range, which makes smooth
    maps of integers small. Packing the same array again gives the same text.

    Raises:
        TypeError: another dtype, or differences of floats, which would not be exact.
    """
    dtype = array.dtype.name
    if dtype not in _DTYPES or (differences and dtype == "float32"):
        raise TypeError(f"{name}: expected one of {', '.join(_DTYPES)} (differences: integers), found {dtype}")
    stored = np.diff(array, axis=-1, prepend=np.zeros_like(array[..., :1])) if differences else array
    planes = np.frombuffer(np.ascontiguousarray(stored, array.dtype.newbyteorder("<")).tobytes(), np.uint8).reshape(-1, array.itemsize).T
    spec = {"name": name, "dtype": dtype, "shape": list(array.shape), "differences": differences}
    return PackedArray(name, spec, base64.b64encode(gzip.compress(planes.tobytes(), 6, mtime=0)).decode())


def size(arrays: tuple[PackedArray, ...]) -> int:
    """Characters that these arrays take on the page."""
    return sum(len(array.text) for array in arrays)


Grid = tuple[int, int]


Pooled = Float32[np.ndarray, "blocks heads n m"]


_POOLS = (1, 2, 3, 4, 6, 8, 12, 16)


_LEVELS = (255, 63, 31, 15)


_EXPECTED_COMPRESSION = 4.0


@dataclasses.dataclass(frozen=True)
class PackedAttention:
    """Attention of all blocks, ready for the page.

    Attributes:
        arrays: `weights1` (blocks, heads, n1, n2) and `peaks1` (blocks, heads, n1): the queries of view 1, and `weights2`, `peaks2`:
            those of view 2. A weight is peak · (stored / levels)².
        pool: tokens that were taken together, in both directions: summed over keys, averaged over queries.
        levels: what a query's largest weight is stored as.
        grids: rows and columns after pooling.
        spans: the same as fractions of cells: where tokens do not divide evenly, the last cells are cut by the image's edge.
        blocks, heads: which there are, in the order of the arrays.
    """

    arrays: tuple[PackedArray, ...]
    pool: int
    levels: int
    grids: tuple[Grid, Grid]
    spans: tuple[tuple[float, float], tuple[float, float]]
    blocks: tuple[int, ...]
    heads: int


def pack_attention(attention: Sequence[Attention], grids: tuple[Grid, Grid], budget: int) -> PackedAttention | None:
    """Packs as finely as `budget` characters allow: first fewer levels, then coarser grids; the coarsest is taken in any case.

    None where there is no attention.
    """
    if not attention:
        return None
    for pool in _POOLS:
        if pool != _POOLS[-1] and _raw_size(attention, grids, pool) / _EXPECTED_COMPRESSION > budget:
            continue
        pooled = _pool(attention, grids, pool)
        for levels in _LEVELS:
            packed = _pack_at(attention, grids, pooled, pool, levels)
            if size(packed.arrays) <= budget:
                return packed
    return packed


def pool_attention(weights: Float[np.ndarray, "heads N M"], queries: Grid, keys: Grid, pool: int) -> Float32[np.ndarray, "heads n m"]:
    """Attention between cells of `pool`×`pool` tokens (fewer at the far edges): rows still sum to 1."""
    heads = weights.shape[0]
    by_place = weights.reshape(heads, *queries, *keys)
    for axis, length in ((3, keys[0]), (4, keys[1]), (1, queries[0]), (2, queries[1])):
        by_place = np.add.reduceat(by_place, np.arange(0, length, pool), axis=axis, dtype=np.float32)
    cells = [np.diff(np.append(np.arange(0, length, pool), length)) for length in queries]
    by_place /= np.outer(*cells)[None, :, :, None, None]
    rows, columns = coarser(queries, pool)
    return by_place.reshape(heads, rows * columns, -1)


def coarser(grid: Grid, pool: int) -> Grid:
    """Rows and columns of cells of `pool`×`pool` tokens."""
    return -(-grid[0] // pool), -(-grid[1] // pool)


def quantise_weights(weights: Float[np.ndarray, "*n m"], levels: int) -> tuple[UInt8[np.ndarray, "*n m"], Float32[np.ndarray, "*n"]]:
    """Square roots of the weights over the largest of their row, in `levels` steps, and the largest of each row.

    The square root keeps small weights apart, of which a row has many. Weights come back to within peak · (1/levels + 1/(4·levels²)).
    """
    peaks = np.maximum(weights.max(-1), np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(np.sqrt(np.clip(weights / peaks[..., None], 0, 1)) * levels).astype(np.uint8), peaks


def describe(packed: PackedAttention | None) -> dict[str, Any] | None:
    """What the page needs besides the arrays, as plain JSON values."""
    if packed is None:
        return None
    return {name: getattr(packed, name) for name in ("pool", "levels", "grids", "spans", "blocks", "heads")}


def _pool(attention: Sequence[Attention], grids: tuple[Grid, Grid], pool: int) -> tuple[Pooled, Pooled]:
    # A block at a time: all of them in float32 would be gigabytes at full size.
    from1 = np.stack([pool_attention(block.from_view1, grids[0], grids[1], pool) for block in attention])
    from2 = np.stack([pool_attention(block.from_view2, grids[1], grids[0], pool) for block in attention])
    return from1, from2


def _pack_at(
    attention: Sequence[Attention], grids: tuple[Grid, Grid], pooled: tuple[Pooled, Pooled], pool: int, levels: int
) -> PackedAttention:
    arrays: list[PackedArray] = []
    for view, of_view in enumerate(pooled, start=1):
        weights, peaks = quantise_weights(of_view, levels)
        arrays += [pack(f"weights{view}", weights), pack(f"peaks{view}", peaks)]
    (rows1, columns1), (rows2, columns2) = grids
    return PackedAttention(
        arrays=tuple(arrays),
        pool=pool,
        levels=levels,
        grids=(coarser(grids[0], pool), coarser(grids[1], pool)),
        spans=((rows1 / pool, columns1 / pool), (rows2 / pool, columns2 / pool)),
        blocks=tuple(block.block for block in attention),
        heads=attention[0].from_view1.shape[0],
    )


def _raw_size(attention: Sequence[Attention], grids: tuple[Grid, Grid], pool: int) -> int:
    (rows1, columns1), (rows2, columns2) = coarser(grids[0], pool), coarser(grids[1], pool)
    return 2 * len(attention) * attention[0].from_view1.shape[0] * rows1 * columns1 * rows2 * columns2
