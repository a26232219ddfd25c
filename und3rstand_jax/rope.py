"""Two-dimensional rotary position embedding (Su et al. 2021; in two dimensions as CroCo v2, Weinzaepfel et al. 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines of one view, each (N, 2, head_dim / 4): token, axis (y, x), frequency."""


def grid_positions(height: int, width: int) -> Num[np.ndarray, "N 2"]:
    """Integer (y, x) of every token of a height × width grid, in row-major order."""
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)


def rotation(grid: tuple[int, int], head_dim: int, base: float) -> Rotation:
    """Cosines and sines that rotate a head's channels by the token's place in a (rows, columns) grid.

    Half of the channels (D' = head_dim / 2) turn with y, half with x, by position · base^(−2i / D'). The angles are
    made in float32 whatever the trunk computes in: bfloat16 cannot tell neighbouring positions apart.
    """
    half = head_dim // 2
    frequencies = jnp.float32(base) ** (-jnp.arange(0, half, 2, dtype=jnp.float32) / half)
    angles = jnp.asarray(grid_positions(*grid), jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(tokens: Float[Array, "B N H D"], rotation: Rotation) -> Float[Array, "B N H D"]:
    """Rotates queries or keys by the positions of their tokens; the result keeps the tokens' dtype."""
    cos, sin = (table[None, :, None, :, :] for table in rotation)
    parts = tokens.astype(jnp.float32).reshape(*tokens.shape[:-1], 2, 2, -1)  # axis (y, x), pair member, frequency
    first, second = parts[..., 0, :], parts[..., 1, :]
    rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return rotated.reshape(tokens.shape).astype(tokens.dtype)
