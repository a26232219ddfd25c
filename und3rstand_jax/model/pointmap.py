"""From four raw channels a pixel to a pointmap and its confidence (DUSt3R, Wang et al., CVPR 2024, section 3.2)."""

import math
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from und3rstand_jax.model.config import Mode


class Pointmap(TypedDict, total=False):
    """A 3D point for every pixel, and how sure the network is of it.

    `pts3d` (B, H, W, 3) lies in the frame of view 1's camera (x right, y down, z forward) for both views, in the
    network's own unit of length. `conf` (B, H, W) is absent where a probe yields none.
    """

    pts3d: Float[Array, "B H W 3"]
    conf: Float[Array, "B H W"]


def to_pointmap(raw: Float[Array, "B H W C"], depth_mode: Mode, conf_mode: Mode) -> Pointmap:
    """Pointmap of raw channels x, y, z and, where there are four, confidence. Computed in float32."""
    raw = raw.astype(jnp.float32)
    pointmap = Pointmap(pts3d=_points(raw[..., :3], depth_mode[0]))
    if raw.shape[-1] > 3:
        pointmap["conf"] = _confidence(raw[..., 3], conf_mode)
    return pointmap


def _points(xyz: Array, mode: str) -> Array:
    if mode == "linear":
        return xyz
    squared = jnp.sum(xyz**2, axis=-1, keepdims=True)
    # The square root has no derivative at 0: both branches of the outer `where` must be differentiable there.
    nonzero = squared > 0
    distance = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, 1.0)), 0.0)
    direction = xyz / jnp.maximum(distance, 1e-8)
    return direction * (jnp.expm1(distance) if mode == "exp" else distance**2)


def _confidence(raw: Array, mode: Mode) -> Array:
    name, low, high = mode
    if name == "sigmoid":
        return (high - low) * jax.nn.sigmoid(raw) + low
    # The bound is taken before the exponential: behind it, an overflow would make the gradient NaN.
    return low + jnp.exp(jnp.minimum(raw, math.log(high - low) if high < math.inf else math.inf))
