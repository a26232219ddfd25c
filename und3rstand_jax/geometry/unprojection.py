"""Turns depth maps into points, in each camera's frame or in the world's."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def unproject(depth: Float[Array, "*B H W"], intrinsics: Float[Array, "*B 3 3"]) -> Float[Array, "*B H W 3"]:
    """Each pixel's point in its camera's frame (x right, y down, z forward), in the depth's unit.

    Args:
        depth: z along the optical axis.
        intrinsics: in pixels, pixel centres at integers, no skew.
    """
    height, width = depth.shape[-2:]
    v, u = jnp.meshgrid(jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij")
    (fx, cx), (fy, cy) = ((intrinsics[..., i, i, None, None], intrinsics[..., i, 2, None, None]) for i in (0, 1))
    return jnp.stack([depth * (u - cx) / fx, depth * (v - cy) / fy, depth], axis=-1)


def points_of_depth(
    depth: Float[Array, "*B H W"], extrinsics: Float[Array, "*B 3 4"], intrinsics: Float[Array, "*B 3 3"]
) -> Float[Array, "*B H W 3"]:
    """Each pixel's point in the world's frame, Rᵀ(X − t), in the unit that depth and translation share.

    Args:
        depth: z along the optical axis.
        extrinsics: [R | t], camera from world.
        intrinsics: in pixels, pixel centres at integers, no skew.
    """
    rotation, translation = extrinsics[..., :3], extrinsics[..., None, None, :, 3]
    moved = unproject(depth, intrinsics) - translation
    return jnp.einsum("...ji,...hwj->...hwi", rotation, moved, precision=lax.Precision.HIGHEST)
