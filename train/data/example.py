"""From a record to what model and loss take, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from train.data.records import Pair, View
from und3rstand_jax.loss import Target


class Example(NamedTuple):
    """A batch of pairs as the model and the loss take them: of each view the image in [-1, 1] (B, H, W, 3), the truth, and
    the intrinsics (B, 3, 3).
    """

    images: tuple[Float[Array, "B H W 3"], Float[Array, "B H W 3"]]
    targets: tuple[Target, Target]
    intrinsics: tuple[Float[Array, "B 3 3"], Float[Array, "B 3 3"]]


def to_example(pair: Pair) -> Example:
    """The example of a batch of records; pure, for use under `jit`."""
    views = (pair.view1, pair.view2)
    return Example(
        images=(model_input(views[0].image), model_input(views[1].image)),
        targets=(target(views[0]), target(views[1])),
        intrinsics=(jnp.asarray(views[0].intrinsics), jnp.asarray(views[1].intrinsics)),
    )


def model_input(image: Array) -> Float[Array, "*B H W 3"]:
    """8-bit RGB as the model's [-1, 1]."""
    return (jnp.asarray(image).astype(jnp.float32) / 255 - 0.5) / 0.5


def target(view: View) -> Target:
    """The world point of every pixel: R·(z·(u − cx)/fx, z·(v − cy)/fy, z) + t; valid where the depth is positive and finite."""
    depth = jnp.asarray(view.depth)
    valid = (depth > 0) & jnp.isfinite(depth)
    in_camera = unproject(jnp.where(valid, depth, 0.0), jnp.asarray(view.intrinsics))
    cam2world = jnp.asarray(view.cam2world)
    rotated = jnp.einsum("...ij,...hwj->...hwi", cam2world[..., :3, :3], in_camera, precision=lax.Precision.HIGHEST)
    return Target(rotated + cam2world[..., None, None, :3, 3], cam2world, valid)


def unproject(depth: Float[Array, "*B H W"], intrinsics: Float[Array, "*B 3 3"]) -> Float[Array, "*B H W 3"]:
    """Each pixel's point in its camera's frame (x right, y down, z forward), in the depth's unit."""
    height, width = depth.shape[-2:]
    v, u = jnp.meshgrid(jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij")
    (fx, cx), (fy, cy) = ((intrinsics[..., i, i, None, None], intrinsics[..., i, 2, None, None]) for i in (0, 1))
    return jnp.stack([depth * (u - cx) / fx, depth * (v - cy) / fy, depth], axis=-1)


def batch_size(example: Example) -> int:
    """How many pairs an example holds."""
    return jax.tree.leaves(example.images)[0].shape[0]
