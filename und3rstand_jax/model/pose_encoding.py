"""Cameras as VGGT encodes them, in nine numbers each, and as matrices (Wang et al., "VGGT", CVPR 2025, section 3.1).

A pose encoding is (tx, ty, tz, qx, qy, qz, qw, vertical field of view, horizontal field of view): translation and rotation from the
world's frame to the camera's, the quaternion scalar-last and of any length, angles in radians. Camera frames are x right, y down,
z forward. The translation is in the model's own unit; the encoding's source determines the world's frame, the first camera's or another.

Extrinsics are [R | t], camera from world. Intrinsics are [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, with the principal point at
(W/2, H/2) of pixels counted from 0: half a pixel to the right of and below the centre that `und3rstand_jax.geometry.cameras` uses.

All functions are differentiable and run under `jit` and `vmap`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Size = tuple[int, int]
"""(height, width) in pixels."""


class CameraMatrices(NamedTuple):
    """`extrinsics` (…, 3, 4), camera from world, and `intrinsics` (…, 3, 3) in pixels."""

    extrinsics: Float[Array, "*B 3 4"]
    intrinsics: Float[Array, "*B 3 3"]


def cameras_of(encoding: Float[Array, "*B 9"], size: Size) -> CameraMatrices:
    """The cameras of pose encodings, for images of this size.

    A field of view of 0, which VGGT's activation allows, gives an infinite focal length.
    """
    extrinsics = jnp.concatenate([rotation_of(encoding[..., 3:7]), encoding[..., :3, None]], axis=-1)
    height, width = size
    fy, fx = (side / 2 / jnp.tan(encoding[..., i] / 2) for side, i in ((height, 7), (width, 8)))
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    rows = [jnp.stack(row, axis=-1) for row in ((fx, zero, one * (width / 2)), (zero, fy, one * (height / 2)), (zero, zero, one))]
    return CameraMatrices(extrinsics, jnp.stack(rows, axis=-2))


def encoding_of(extrinsics: Float[Array, "*B 3 4"], intrinsics: Float[Array, "*B 3 3"], size: Size) -> Float[Array, "*B 9"]:
    """The pose encodings of cameras with images of this size; quaternions have length 1 and a scalar of at least 0.

    Only the focal lengths of the intrinsics are kept: the encoding assumes the principal point in the middle.
    """
    height, width = size
    fields = [2 * jnp.arctan(side / 2 / intrinsics[..., i, i]) for side, i in ((height, 1), (width, 0))]
    return jnp.concatenate([extrinsics[..., 3], quaternion_of(extrinsics[..., :3]), jnp.stack(fields, axis=-1)], axis=-1)


def rotation_of(quaternion: Float[Array, "*B 4"]) -> Float[Array, "*B 3 3"]:
    """The rotation of a quaternion (x, y, z, w) of any length; NaN for the zero quaternion."""
    x, y, z, w = jnp.moveaxis(quaternion, -1, 0)
    s = 2 / jnp.sum(quaternion**2, axis=-1)
    rows = (
        (1 - s * (y**2 + z**2), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x**2 + z**2), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x**2 + y**2)),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_of(rotation: Float[Array, "*B 3 3"]) -> Float[Array, "*B 4"]:
    """The quaternion (x, y, z, w) of a rotation, of length 1 and with w ≥ 0 (Shepperd 1978)."""
    (a, b, c), (d, e, f), (g, h, i) = (jnp.moveaxis(rotation[..., row, :], -1, 0) for row in range(3))
    # Row k is 4·q_k·q. Any would do, but those of a small q_k lose digits, and that of a q_k of 0 has no direction.
    rows = (
        (1 + a - e - i, b + d, c + g, h - f),
        (b + d, 1 - a + e - i, f + h, c - g),
        (c + g, f + h, 1 - a - e + i, d - b),
        (h - f, c - g, d - b, 1 + a + e + i),
    )
    multiples = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    largest = jnp.argmax(jnp.diagonal(multiples, axis1=-2, axis2=-1), axis=-1)
    chosen = jnp.take_along_axis(multiples, largest[..., None, None], axis=-2)[..., 0, :]
    unit = chosen / jnp.sqrt(jnp.sum(chosen**2, axis=-1, keepdims=True))
    return jnp.where(unit[..., 3:] < 0, -unit, unit)
